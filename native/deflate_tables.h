/* Models of the encoders with hash tables: no chains, one or two candidates for each hash, tokens made for blocks of
 * 65,535 bytes at once, long steps through what does not match.
 *
 * Source: the behaviour of Go 1.19 .. 1.26 compress/flate (deflatefast.go), of klauspost/compress 1.9 .. 1.19 (flate:
 * level1.go, level5.go, level6.go) and of klauspost/pgzip (blocks with a dictionary of 16 KiB).
 */
#ifndef LAYERSTORE_DEFLATE_TABLES_H
#define LAYERSTORE_DEFLATE_TABLES_H

#include "deflate_model.h"

typedef struct table_model table_model;

table_model *table_model_new(const model_choice *choice, const model_text *text, uint32_t end);
void table_begin_member(table_model *model, uint32_t at, uint32_t end);
size_t table_border(const table_model *model, uint32_t at);
size_t table_confirm(table_model *model, size_t *at, const deflate_token *tokens, size_t count);
size_t table_produce(table_model *model, size_t *at, deflate_token *tokens, size_t count, size_t end);
deflate_token table_predict(table_model *model, uint32_t at);

#endif
