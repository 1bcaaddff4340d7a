#include "cdc.h"

#include <string.h>

#include "cdc_scan.h"
#include "gear.h"

#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

enum { LANES = 4 }; /* enough to hide the latency of shift and add */

static size_t find(cdc_walk *walk, const cdc_rule *rule, size_t start, size_t last);
static size_t first_mark(const uint64_t *marks, size_t low, size_t high);
static void scan(cdc_walk *walk, const cdc_rule *rule, size_t low);

void cdc_begin(cdc_walk *walk, const uint8_t *data, size_t size) {
    walk->data = data;
    walk->size = size;
    walk->low = 0;
    walk->high = 0;
}

size_t cdc_next(cdc_walk *walk, const cdc_rule *rule, size_t start, int is_open) {
    size_t left = walk->size - start;
    if (left <= rule->min) {
        return is_open ? 0 : left;
    }
    size_t last = left < rule->max ? left : rule->max;
    size_t length = find(walk, rule, start, start + last);
    if (length) {
        return length;
    }
    return is_open && last < rule->max ? 0 : last;
}

/* The chunk length at the first position up to `last` that the rule takes for its hash; 0 if none. */
static size_t find(cdc_walk *walk, const cdc_rule *rule, size_t start, size_t last) {
    size_t at = start + rule->min;
    size_t normal = start + rule->normal;
    while (at <= last) {
        if (at < walk->low || at >= walk->high) {
            scan(walk, rule, at);
        }
        int is_strict = at < normal;
        size_t stop = last + 1 < walk->high ? last + 1 : walk->high;
        if (is_strict && normal < stop) {
            stop = normal;
        }
        const uint64_t *marks = is_strict ? walk->marks.strict : walk->marks.loose;
        size_t found = first_mark(marks, at - walk->low, stop - walk->low) + walk->low;
        if (found < stop) {
            return found - start;
        }
        at = stop;
    }
    return 0;
}

/* The first set bit in [low, high), or high. */
static size_t first_mark(const uint64_t *marks, size_t low, size_t high) {
    uint64_t word = marks[low / 64] & ~(uint64_t)0 << low % 64;
    size_t base = low - low % 64;
    while (!word) {
        base += 64;
        if (base >= high) {
            return high;
        }
        word = marks[base / 64];
    }
    size_t found = base + (size_t)__builtin_ctzll(word);
    return found < high ? found : high;
}

/* Hash the block of positions from `low`, up to and including the end of the span. */
static void scan(cdc_walk *walk, const cdc_rule *rule, size_t low) {
    size_t count = walk->size + 1 - low;
    if (count > CDC_BLOCK) {
        count = CDC_BLOCK;
    }
    size_t words = (count + 63) / 64;
    memset(walk->marks.strict, 0, words * sizeof(uint64_t));
    memset(walk->marks.loose, 0, words * sizeof(uint64_t));
    walk->low = low;
    walk->high = low + count;
#if SIMD_X86
    if (count >= CDC_VECTOR_LEAST && simd_has_vbmi()) {
        cdc_scan_avx512(walk->data + low, count, rule, &walk->marks);
        return;
    }
#endif
    cdc_scan_portable(walk->data + low, count, rule, &walk->marks);
}

void cdc_scan_portable(const uint8_t *first, size_t count, const cdc_rule *rule, cdc_marks *marks) {
    const uint32_t loose = rule->loose;
    /* Position i is known when the byte before it, first[i - 1], has been taken in. */
    const uint8_t *before = first - 1;
    size_t stretch = count / LANES;
    const uint8_t *in0 = before, *in1 = in0 + stretch, *in2 = in1 + stretch, *in3 = in2 + stretch;
    uint32_t h0 = 0, h1 = 0, h2 = 0, h3 = 0;
    for (int back = CDC_WINDOW - 1; back > 0; back--) {
        h0 = (h0 << 1) + GEAR[in0[-back]];
        h1 = (h1 << 1) + GEAR[in1[-back]];
        h2 = (h2 << 1) + GEAR[in2[-back]];
        h3 = (h3 << 1) + GEAR[in3[-back]];
    }
    for (size_t i = 0; i < stretch; i++) {
        h0 = (h0 << 1) + GEAR[in0[i]];
        h1 = (h1 << 1) + GEAR[in1[i]];
        h2 = (h2 << 1) + GEAR[in2[i]];
        h3 = (h3 << 1) + GEAR[in3[i]];
        if (UNLIKELY(h0 < loose)) {
            cdc_mark(marks, rule, i, h0);
        }
        if (UNLIKELY(h1 < loose)) {
            cdc_mark(marks, rule, stretch + i, h1);
        }
        if (UNLIKELY(h2 < loose)) {
            cdc_mark(marks, rule, 2 * stretch + i, h2);
        }
        if (UNLIKELY(h3 < loose)) {
            cdc_mark(marks, rule, 3 * stretch + i, h3);
        }
    }
    for (size_t i = LANES * stretch; i < count; i++) {
        h3 = (h3 << 1) + GEAR[before[i]];
        if (h3 < loose) {
            cdc_mark(marks, rule, i, h3);
        }
    }
}
