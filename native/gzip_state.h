/* What both directions of a recipe share: its contexts, and the functions that each goes through in the same order, so
 * that they cannot disagree. One range coder a segment. `recipe_code_…` take what is to be written; where the coder
 * reads they give what it read, and do not look at what they take.
 */
#ifndef LAYERSTORE_GZIP_STATE_H
#define LAYERSTORE_GZIP_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "deflate_model.h"
#include "deflate_write.h"
#include "range_coder.h"

/* What the coder has learned of a segment; the number of a bit is the context it stands in. */
typedef struct {
    range_coder coder;
    struct {
        range_bit state[2], more, same_header, final, dynamic, fixed, padding[8], same_trailer;
        range_bit usual_count, is_match[2], same_length, same_distance;
        range_bit other_header, other_form, same_code_length[2][2];
    } bits;
    struct {
        range_number member_end, header_size, stored, count, misses, run, length, distance;
        range_number code_count, code_length, header_bits;
    } numbers;
} recipe_coder;

enum { LEAST_USUAL = 1024 };

typedef struct {
    uint32_t index;
    deflate_token predicted;
} miss;

typedef struct {
    recipe_coder code;
    deflate_model *model;
    int is_counting; /* the model */
    huffman *space;
    enum huffman_style style;
    const uint8_t *data;
    size_t at, end;          /* in the segment */
    size_t member, member_end; /* the member in hand: where it begins (SIZE_MAX: before the segment) and ends */
    size_t usual;            /* tokens of a block */
    bit_writer scratch;      /* a header as it was predicted */
    code_lengths lengths;    /* and its code lengths */
    miss *misses;
    size_t miss_room;
} recipe_state;

static inline unsigned code_bit(recipe_state *state, range_bit *bit, unsigned value) {
    return range_code(&state->code.coder, bit, value);
}

static inline uint32_t code_number(recipe_state *state, range_number *number, uint32_t value) {
    return range_number_code(&state->code.coder, number, value);
}

/* A signed difference as a number: 0, 1, -1, 2, -2 ... */
static inline uint32_t folded(int32_t value) {
    return value > 0 ? 2 * (uint32_t)value - 1 : 2 * (uint32_t)-value;
}

static inline int32_t unfolded(uint32_t value) {
    return value & 1 ? (int32_t)(value / 2 + 1) : -(int32_t)(value / 2);
}

/* Whether the model may have foretold something else than one that counts exactly: it is all to be done with that. */
static inline int recipe_is_unsure(const recipe_state *state) {
    return state->model && model_is_unsure(state->model);
}

size_t recipe_code_member_end(recipe_state *state, size_t segment_end, size_t end);

deflate_token recipe_code_correction(recipe_state *state, deflate_token predicted,
                                     deflate_token actual, uint8_t literal);

void recipe_code_lengths(recipe_state *state, const code_lengths *predicted, code_lengths *actual);

/* The header of a dynamic block with these lengths, in `scratch`; returns its bits. */
uint64_t recipe_standard_header(recipe_state *state, const code_lengths *lengths);

/* Whether the trailer is that of the bytes before can be told only of a member that is all here. */
void recipe_code_trailer(recipe_state *state, uint8_t *trailer);

uint8_t recipe_code_padding(recipe_state *state, unsigned bits, unsigned value);

void recipe_begin_member(recipe_state *state, size_t segment_end, size_t end);

/* A segment begins at `start` of `data`, and ends at `end`. -1: no memory. */
int recipe_begin(recipe_state *state, const model_choice *choice, const uint8_t *data, size_t start,
                 size_t end);

/* The same of the model, which looks at the text. -1: no memory. */
int recipe_begin_model(recipe_state *state, const model_choice *choice, const model_text *text,
                       int after_literal);

void recipe_enter_member(recipe_state *state, size_t size);

/* Where a block of the usual kind ends. */
size_t recipe_usual_end(const recipe_state *state);

/* An encoder of another block size keeps to it; the blocks at ends of things say nothing. */
void recipe_learn_usual(recipe_state *state, size_t count);

void recipe_free(recipe_state *state);

#endif
