/* Granary's own result codes, one row each: the enum, text, errno (FUSE, NBD), SCSI sense and exit status all
 * come from here. Errno values not listed map to themselves, exit status 1 and HARDWARE ERROR / internal failure.
 *
 * GR_CODE(name, number, errno, sense key, ASC<<8|ASCQ, exit status, text) */
GR_CODE(GR_ECORRUPT, 4096, EIO, 0x03, 0x1100, 5, "damaged: failed its checksum or a validity rule")
GR_CODE(GR_EFENCED, 4097, EROFS, 0x02, 0x0400, 4, "this host no longer holds its place")
GR_CODE(GR_ELOCKED, 4098, EBUSY, 0x02, 0x0401, 4, "in use by another owner")
GR_CODE(GR_EFORMAT, 4099, EINVAL, 0x05, 0x2400, 1, "not in a known format")
GR_CODE(GR_EVERSION, 4100, EINVAL, 0x05, 0x2400, 1, "of a version or with features this build does not know")
GR_CODE(GR_EPROTO, 4101, EPROTO, 0x0b, 0x4b00, 1, "protocol violation by the peer")
GR_CODE(GR_EMISCOMPARE, 4102, EILSEQ, 0x0e, 0x1d00, 1, "compared data differ")
GR_CODE(GR_ENOSPACE, 4103, ENOSPC, 0x07, 0x2707, 1, "no space left on the datastore")
GR_CODE(GR_EREADONLY, 4104, EROFS, 0x07, 0x2700, 1, "read-only")
GR_CODE(GR_ERANGE, 4105, EINVAL, 0x05, 0x2100, 1, "outside the device")
GR_CODE(GR_ECANCELED, 4106, ECANCELED, 0x0b, 0x0006, 1, "canceled")
GR_CODE(GR_EUSAGE, 4107, EINVAL, 0x05, 0x2400, 2, "wrong usage")
GR_CODE(GR_EAUTH, 4108, EACCES, 0x05, 0x2002, 1, "not authenticated or not permitted")
GR_CODE(GR_EPARTIAL, 4109, EIO, 0x0b, 0x0000, 3, "only partly done")
GR_CODE(GR_ERESERVED, 4110, EBUSY, 0x00, 0x0000, 4, "reserved by another initiator")
GR_CODE(GR_EMEDIUM, 4111, EIO, 0x03, 0x1100, 5, "the device failed to read or write")
GR_CODE(GR_EBEHIND, 4112, EIO, 0x02, 0x0403, 5, "its last changes are lost, and it may have another disk's bytes")
