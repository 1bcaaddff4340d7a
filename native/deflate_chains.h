/* Models of the encoders with hash chains: every position is linked to the one before of the same hash, the chain is
 * walked from the newest, and a match waits for one token to see whether the next position has a longer one ("lazy").
 *
 * Source: the behaviour of zlib 1.2 (deflate.c: longest_match, deflate_slow, deflate_fast; the table of levels) and of
 * Go 1.19 .. 1.26 compress/flate (deflate.go).
 */
#ifndef LAYERSTORE_DEFLATE_CHAINS_H
#define LAYERSTORE_DEFLATE_CHAINS_H

#include "deflate_model.h"

typedef struct chain_model chain_model;

chain_model *chain_model_new(const model_choice *choice, const model_text *text, uint32_t end,
                             int after_literal, int is_counting);
int chain_is_unsure(const chain_model *model);
void chain_begin_member(chain_model *model, uint32_t at, uint32_t end);
size_t chain_border(const chain_model *model, uint32_t at);
size_t chain_block_tokens(const chain_model *model);

/* Asked again for the same position it says the same. */
deflate_token chain_predict(chain_model *model, uint32_t at);

/* Go on behind a token that was predicted; behind one that was not. */
void chain_follow(chain_model *model, uint32_t at, deflate_token token);
void chain_correct(chain_model *model, uint32_t at, deflate_token token);
void chain_pass_over(chain_model *model);

#endif
