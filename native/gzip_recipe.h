/* A stretch of gzip to its plain bytes and a recipe, and back: what a model of the encoder does not foresee is the recipe.
 *
 * A segment is a run of whole deflate blocks, about a MiB of plain bytes. Each is split and joined by itself, from
 * its plain bytes, some that precede them (history) and some that follow (ahead): so a blob can be joined from any
 * segment on, and in parallel. docs/format.md, "Recipes of blobs", is the format.
 */
#ifndef LAYERSTORE_GZIP_RECIPE_H
#define LAYERSTORE_GZIP_RECIPE_H

#include <stddef.h>
#include <stdint.h>

#include "deflate_model.h"
#include "deflate_parse.h"

enum { GZIP_AT_HEADER = 1, GZIP_AFTER_LITERAL = 2 }; /* how a segment begins */

/* The recipe of a segment that was parsed, from malloc. `position` is its first byte's in its member, `state` how it
 * begins, and then how the next one begins; `header` the gzip header that is expected. -1: no memory. */
int gzip_recipe_encode(const deflate_segment *segment, const model_choice *choice,
                       uint64_t *position, unsigned *state, const uint8_t *header,
                       size_t header_size, uint8_t **recipe, size_t *recipe_size);

typedef struct {
    /* in */
    model_choice choice;
    model_text text;
    size_t end; /* of the segment in the text */
    const uint8_t *header;
    size_t header_size;
    const uint8_t *recipe;
    size_t recipe_size;
    unsigned first_bit; /* of the first byte: the bits below it belong to the segment before */
    uint64_t bit_size;  /* what the segment must have */
    /* out, from malloc */
    uint8_t *bytes;
    size_t size;
} gzip_join;

enum { GZIP_JOIN_BAD = -1, GZIP_JOIN_NO_MEMORY = -2 };

/* 0, or what is wrong: a recipe that does not belong to these bytes. */
int gzip_recipe_join(gzip_join *join);

#endif
