/* Large blocks of memory that are used again: one from malloc that is freed after each segment costs as much time in page
 * faults as the parser does. Blocks are given back from any thread; what is kept is bounded. */
#ifndef LAYERSTORE_SCRATCH_H
#define LAYERSTORE_SCRATCH_H

#include <stddef.h>

/* `size` bytes or more, of any content; how many in `*room`. NULL: no memory. */
void *scratch_take(size_t size, size_t *room);

/* The same bytes, the first `used` of them, in a block of `size` or more. NULL: no memory; the old block stays then. */
void *scratch_grow(void *block, size_t used, size_t size, size_t *room);

void scratch_give(void *block); /* NULL is none */

#endif
