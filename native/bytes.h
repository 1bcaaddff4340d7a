/* Unaligned little-endian loads and stores that mean the same on every machine. */
#ifndef LAYERSTORE_BYTES_H
#define LAYERSTORE_BYTES_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LE16(x) __builtin_bswap16(x)
#define LE32(x) __builtin_bswap32(x)
#define LE64(x) __builtin_bswap64(x)
#else
#define LE16(x) (x)
#define LE32(x) (x)
#define LE64(x) (x)
#endif

static inline uint32_t load_le32(const void *from) {
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return LE32(word);
}

static inline uint64_t load_le64(const void *from) {
    uint64_t word;
    memcpy(&word, from, sizeof word);
    return LE64(word);
}

static inline void store_le16(void *to, uint16_t word) {
    word = LE16(word);
    memcpy(to, &word, sizeof word);
}

static inline void store_le32(void *to, uint32_t word) {
    word = LE32(word);
    memcpy(to, &word, sizeof word);
}

static inline void store_le64(void *to, uint64_t word) {
    word = LE64(word);
    memcpy(to, &word, sizeof word);
}

#endif
