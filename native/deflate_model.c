/* The two kinds of models behind one interface. */
#include "deflate_model.h"

#include <stdlib.h>

#include "deflate_chains.h"
#include "deflate_tables.h"
#include "scratch.h"

struct deflate_model {
    chain_model *chains; /* one of the two */
    table_model *tables;
};

int model_is_known(const model_choice *choice) {
    switch (choice->family) {
    case MODEL_ZLIB:
        return choice->level >= 1 && choice->level <= 9;
    case MODEL_GO:
        return choice->level >= 2 && choice->level <= 9;
    case MODEL_GO_FAST:
        return choice->level == 1;
    case MODEL_KLAUSPOST:
        return choice->level == 1 || choice->level == 5 || choice->level == 6 ||
               choice->level == 15 || choice->level == 25;
    default:
        return 0;
    }
}

deflate_model *model_new(const model_choice *choice, const model_text *text, size_t end,
                         int after_literal, int is_counting) {
    deflate_model *model = calloc(1, sizeof *model);
    if (!model) {
        return NULL;
    }
    if (choice->family == MODEL_ZLIB || choice->family == MODEL_GO) {
        model->chains = chain_model_new(choice, text, (uint32_t)end, after_literal, is_counting);
    } else {
        model->tables = table_model_new(choice, text, (uint32_t)end);
    }
    if (!model->chains && !model->tables) {
        free(model);
        return NULL;
    }
    return model;
}

int model_is_unsure(const deflate_model *model) {
    return model->chains && chain_is_unsure(model->chains);
}

void model_free(deflate_model *model) {
    if (model) {
        scratch_give(model->chains);
        scratch_give(model->tables);
        free(model);
    }
}

void model_begin_member(deflate_model *model, size_t at, size_t end) {
    if (model->chains) {
        chain_begin_member(model->chains, (uint32_t)at, (uint32_t)end);
    } else {
        table_begin_member(model->tables, (uint32_t)at, (uint32_t)end);
    }
}

size_t model_border(const deflate_model *model, size_t at) {
    return model->chains ? chain_border(model->chains, (uint32_t)at)
                         : table_border(model->tables, (uint32_t)at);
}

size_t model_block_tokens(const deflate_model *model) {
    return model->chains ? chain_block_tokens(model->chains) : SIZE_MAX;
}

size_t model_confirm(deflate_model *model, size_t *at, const deflate_token *tokens, size_t count) {
    if (model->tables) {
        return table_confirm(model->tables, at, tokens, count);
    }
    size_t done = 0;
    while (done < count && chain_predict(model->chains, (uint32_t)*at) == tokens[done]) {
        chain_follow(model->chains, (uint32_t)*at, tokens[done]);
        *at += deflate_extent(tokens[done++]);
    }
    return done;
}

size_t model_produce(deflate_model *model, size_t *at, deflate_token *tokens, size_t count,
                     size_t end) {
    if (model->tables) {
        return table_produce(model->tables, at, tokens, count, end);
    }
    size_t done = 0;
    while (done < count && *at < end) {
        deflate_token token = chain_predict(model->chains, (uint32_t)*at);
        if (deflate_extent(token) > end - *at) {
            break;
        }
        chain_follow(model->chains, (uint32_t)*at, token);
        tokens[done++] = token;
        *at += deflate_extent(token);
    }
    return done;
}

deflate_token model_predict(deflate_model *model, size_t at) {
    return model->chains ? chain_predict(model->chains, (uint32_t)at)
                         : table_predict(model->tables, (uint32_t)at);
}

void model_correct(deflate_model *model, size_t at, deflate_token token) {
    if (model->chains) {
        chain_correct(model->chains, (uint32_t)at, token);
    }
}

void model_pass_over(deflate_model *model) {
    if (model->chains) {
        chain_pass_over(model->chains);
    }
}
