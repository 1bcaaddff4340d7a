/* BLAKE3 (hash mode, 256 bits) of many inputs at once.
 *
 * BLAKE3 cuts an input into leaves of 1024 bytes and hashes them in a binary tree. A leaf or a parent
 * is a *job*: 0..1024 bytes in, 32 bytes out, independent of all others of its level. A batch collects
 * the leaves of many inputs, sorts them by their number of 64-byte blocks and runs 16 (AVX-512), 8
 * (AVX2) or 4 side by side, one per vector lane; then the parents, level by level over all inputs. So
 * small inputs and ragged tails fill the lanes as well as one long input does.
 *
 * Source: J. O'Connor, J-P. Aumasson, S. Neves, Z. Wilcox-O'Hearn, "BLAKE3: one function, fast
 * everywhere" (2021), sections 2.1 (tree), 2.2 (compression function), 5.1.2 (many chunks in SIMD).
 */
#ifndef LAYERSTORE_BLAKE3_H
#define LAYERSTORE_BLAKE3_H

#include <stddef.h>
#include <stdint.h>

enum { BLAKE3_SIZE = 32 };

typedef struct blake3_batch blake3_batch;

/* NULL if there is no memory. Free with blake3_batch_free. Not for two threads at once. */
blake3_batch *blake3_batch_new(void);
void blake3_batch_free(blake3_batch *batch);

/* Promise BLAKE3 of `data` at `out`; both must stay where they are until the next flush. May flush. */
void blake3_batch_add(blake3_batch *batch, const uint8_t *data, size_t size, uint8_t *out);

/* Write every hash promised so far. */
void blake3_batch_flush(blake3_batch *batch);

#endif
