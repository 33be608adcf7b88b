/* The request loop of granary-fsread. */
#ifndef FSREAD_SERVE_H
#define FSREAD_SERVE_H
/* Answer requests on the blocking socket @fd until its peer closes it. 0: closed in order; negative: a frame was not of
 * the protocol, or the socket failed. */
int fsread_serve(int fd);
#endif
