/* Kept blocks: scratch.h. A slot holds one block or none, and is only ever exchanged, so that nobody has to wait. */
#include "scratch.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define KEEPS 0 /* or a sanitizer would not see what is used after it was freed */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KEEPS 0
#endif
#endif
#ifndef KEEPS
#define KEEPS 1
#endif

enum {
    SLOTS = 12,          /* of two threads that split or join */
    LARGEST = 4 << 20,   /* bytes of a block that is kept */
    WASTE = 4,           /* a kept block may be so many times as large as what is asked for */
};

typedef struct {
    _Alignas(max_align_t) size_t room;
} header;

static _Atomic(header *) slots[SLOTS];

void *scratch_take(size_t size, size_t *room) {
    header *block = NULL;
    for (int i = 0; KEEPS && i < SLOTS && !block; i++) {
        if (!atomic_load_explicit(&slots[i], memory_order_relaxed)) {
            continue;
        }
        block = atomic_exchange(&slots[i], NULL);
        if (block && (block->room < size || block->room / WASTE > size)) {
            free(atomic_exchange(&slots[i], block)); /* somebody else may have given one meanwhile */
            block = NULL;
        }
    }
    if (!block) {
        block = size <= SIZE_MAX - sizeof(header) ? malloc(sizeof(header) + size) : NULL;
        if (!block) {
            return NULL;
        }
        block->room = size;
    }
    *room = block->room;
    return block + 1;
}

void *scratch_grow(void *block, size_t used, size_t size, size_t *room) {
    void *grown = scratch_take(size, room);
    if (grown && block) {
        memcpy(grown, block, used);
        scratch_give(block);
    }
    return grown;
}

void scratch_give(void *block) {
    header *given = block ? (header *)block - 1 : NULL;
    for (int i = 0; KEEPS && i < SLOTS && given && given->room <= LARGEST; i++) {
        header *none = NULL;
        if (atomic_compare_exchange_strong(&slots[i], &none, given)) {
            given = NULL;
        }
    }
    free(given);
}
