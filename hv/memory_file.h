/* A file of a datastore that the engine writes or reads as a stream: the storage service connects to a socket of ours, and the engine gets our end. */
#ifndef HV_MEMORY_FILE_H
#define HV_MEMORY_FILE_H
#include "hv/storage.h"

struct hv_memory_file;
enum hv_memory_way { HV_MEMORY_TAKE, HV_MEMORY_GIVE }; /* seen from the storage service */
/* (fiber) Have the storage service take or give @path, over a socket made at @socket. *ret_fd: the engine's end, which is the caller's to close.
 * @key: of a file that is taken, the number of the key it is encrypted with; NULL: it is not. */
int hv_memory_file_open(const struct hv_storage *s, enum hv_memory_way way, const char *path, uint64_t limit, const char *key, const char *socket,
                        struct hv_memory_file **ret, int *ret_fd, struct gr_err *err);
/* (fiber) Wait until the storage service is through (all ends of the socket are closed here), and free it. How much it was, and its CRC32C. */
int hv_memory_file_end(struct hv_memory_file *f, uint64_t *ret_bytes, uint32_t *ret_crc, struct gr_err *err);
#endif
