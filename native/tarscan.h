/* A walk over the headers of a tar stream that lies in memory: where each is and what its numbers say.
 *
 *     header block (512)                                        row (64), little endian
 *     0   name[100]     148 chksum[8]    265 uname[32]          0  header offset u64   40 mode u32
 *     100 mode[8]       156 typeflag     297 gname[32]          8  size u64            44 devmajor u32
 *     108 uid[8]        157 link[100]    329 devmajor[8]        16 mtime i64           48 devminor u32
 *     116 gid[8]        257 magic[6]     337 devminor[8]        24 uid u64             52 name, prefix,
 *     124 size[12]      263 version[2]   345 prefix[155]        32 gid u64                link length u16
 *     136 mtime[12]                                             58 typeflag u8, format u8, flags u32
 *
 * Sources: POSIX pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" (base-256 numbers,
 * magic "ustar  \0"). The contract in words: layerstore/kernels.py, tar_scan.
 */
#ifndef LAYERSTORE_TARSCAN_H
#define LAYERSTORE_TARSCAN_H

#include <stddef.h>
#include <stdint.h>

enum { TARSCAN_ROW = 64, TARSCAN_MAX_ROWS = 65536 };

enum tarscan_stop {
    TARSCAN_NEED_DATA,
    TARSCAN_END,
    TARSCAN_BAD_CHECKSUM,
    TARSCAN_BAD_SIZE,
    TARSCAN_SPECIAL,
    TARSCAN_MORE,
};

/* Write up to `room` rows from the header at *next and move *next past what was written. Returns
 * TARSCAN_MORE when another row would not fit. *next <= 2**62; it may lie past the end. */
enum tarscan_stop tarscan(const uint8_t *data, size_t size, uint64_t *next, uint8_t *rows, size_t room,
                          size_t *count);

#endif
