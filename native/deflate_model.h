/* What an encoder would have done: from plain bytes to the tokens that a known encoder writes for them.
 *
 * A model predicts the token at a position from the bytes around it and from what was before; where the encoder in fact
 * wrote something else it is told so and goes on from there, so that a wrong guess costs a little and never more. Only
 * the behaviour matters, not how the encoder is built. What a model says is part of the recipe format, for ever:
 * a change of behaviour is a new family or level.
 *
 *     family          levels           encoder
 *     MODEL_ZLIB      1..9             zlib, GNU gzip, pigz (blocks of 128 KiB), Python, Java
 *     MODEL_GO        2..9             Go's compress/flate until 1.26
 *     MODEL_GO_FAST   1                the same, BestSpeed
 *     MODEL_KLAUSPOST 1, 5, 6          klauspost/compress (5: 1.15.12 and later) and pgzip, Go's compress/flate since 1.27
 *                     15, 25           level 5 of 1.11.13 .. 1.15.9, and of older ones
 *
 * Positions are indexes into `text.data`. Memory: below 1 MiB. Work is bounded: a model that is made to search too long
 * stops to search.
 */
#ifndef LAYERSTORE_DEFLATE_MODEL_H
#define LAYERSTORE_DEFLATE_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "deflate.h"

enum deflate_family { MODEL_ZLIB = 1, MODEL_GO, MODEL_GO_FAST, MODEL_KLAUSPOST, MODEL_FAMILIES };

typedef struct {
    uint8_t family, level;
    uint32_t block; /* bytes that are compressed by themselves, after a dictionary; 0: all of a member */
} model_choice;

/* history | segment | what is ahead of it */
typedef struct {
    const uint8_t *data;
    size_t start; /* of the segment */
    size_t size;
    uint64_t position; /* of `start` in its member; history before the member's begin is not looked at */
} model_text;

typedef struct deflate_model deflate_model;

int model_is_known(const model_choice *choice);

/* NULL: no memory. The member that the segment begins in, or with, ends at `end`, or behind the data. With
 * `after_literal` the token before the segment was a literal. A model that is not counting may become unsure: what it said
 * is worth nothing then, and one that counts, slowly, has to say all of it. */
deflate_model *model_new(const model_choice *choice, const model_text *text, size_t end,
                         int after_literal, int is_counting);
int model_is_unsure(const deflate_model *model);
void model_free(deflate_model *model);

/* A member of the bytes from `at` to `end` begins. */
void model_begin_member(deflate_model *model, size_t at, size_t end);

/* Where the encoder ends a block that begins at `at`, however few tokens it has; and how many it has at most. */
size_t model_border(const deflate_model *model, size_t at);
size_t model_block_tokens(const deflate_model *model);

/* How many of these tokens, from `*at` on, are as predicted; `*at` moves behind them. */
size_t model_confirm(deflate_model *model, size_t *at, const deflate_token *tokens, size_t count);

/* The predicted tokens from `*at` on, `count` of them or as many as fit before `end`. */
size_t model_produce(deflate_model *model, size_t *at, deflate_token *tokens, size_t count,
                     size_t end);

/* The token predicted at `at`; then the one that is there in fact. */
deflate_token model_predict(deflate_model *model, size_t at);
void model_correct(deflate_model *model, size_t at, deflate_token token);

/* Bytes were passed over whose tokens nobody knows (a stored block). */
void model_pass_over(deflate_model *model);

#endif
