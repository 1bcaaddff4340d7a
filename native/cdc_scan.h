/* Between cdc.c and its vector scan. */
#ifndef LAYERSTORE_CDC_SCAN_H
#define LAYERSTORE_CDC_SCAN_H

#include "cdc.h"
#include "simd.h"

/* Mark the positions first + i, i < count <= CDC_BLOCK, that pass; `first` points at data[first] and
 * has at least 64 bytes of its span before it. Reads first[-64 .. count - 2]. Marks are zero on entry. */
void cdc_scan_portable(const uint8_t *first, size_t count, const cdc_rule *rule, cdc_marks *marks);
#if SIMD_X86
/* The same, for count >= CDC_VECTOR_LEAST, on AVX-512 with VBMI. */
enum { CDC_VECTOR_LEAST = 1025 };
void cdc_scan_avx512(const uint8_t *first, size_t count, const cdc_rule *rule, cdc_marks *marks);
#endif

static inline void cdc_mark(cdc_marks *marks, const cdc_rule *rule, size_t i, uint32_t hash) {
    marks->loose[i / 64] |= (uint64_t)1 << i % 64;
    if (hash < rule->strict) {
        marks->strict[i / 64] |= (uint64_t)1 << i % 64;
    }
}

#endif
