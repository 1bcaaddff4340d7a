/* DEFLATE, written: bits, code lengths as Go and zlib choose them, headers of dynamic blocks, tokens.
 *
 * Source: RFC 1951; the behaviour of Go's compress/flate (huffman_code.go) and of zlib (trees.c).
 */
#ifndef LAYERSTORE_DEFLATE_WRITE_H
#define LAYERSTORE_DEFLATE_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "deflate.h"

/* Bits, the lowest first. `bytes` is from malloc; `failed` says that there was no memory. */
typedef struct {
    uint8_t *bytes;
    size_t size, room;
    uint64_t bits;
    unsigned count; /* of `bits`, below 8 between calls */
    int failed;
} bit_writer;

/* Code lengths of a block: the first `literals` and `distances` of each kind are written. */
typedef struct {
    uint8_t literal[DEFLATE_LITERALS];
    uint8_t distance[DEFLATE_DISTANCES];
    unsigned literals, distances;
} code_lengths;

/* How an encoder finds code lengths, and writes them down. */
enum huffman_style { HUFFMAN_GO, HUFFMAN_ZLIB };

enum { HEADER_BYTES = 1024 }; /* no header of a dynamic block is longer */

typedef struct huffman huffman; /* work space */

huffman *huffman_new(void);
void huffman_free(huffman *space);

/* The lengths that an encoder of this style gives to a block of these tokens. */
void huffman_lengths(huffman *space, enum huffman_style style, const deflate_token *tokens,
                     size_t count, code_lengths *lengths);

/* Room for this many bytes; -1 if there is none. */
int bit_writer_reserve(bit_writer *writer, size_t bytes);

/* Up to 56 bits, in room that was reserved. */
static inline void bit_writer_put(bit_writer *writer, uint64_t value, unsigned count) {
    writer->bits |= value << writer->count;
    writer->count += count;
    for (; writer->count >= 8; writer->count -= 8, writer->bits >>= 8) {
        writer->bytes[writer->size++] = (uint8_t)writer->bits;
    }
}

/* The header of a dynamic block, from HLIT on; HEADER_BYTES are reserved. */
void deflate_write_header(bit_writer *writer, huffman *space, enum huffman_style style,
                          const code_lengths *lengths);

/* The tokens of a block and its end. */
void deflate_write_tokens(bit_writer *writer, const deflate_token *tokens, size_t count,
                          const code_lengths *lengths);

#endif
