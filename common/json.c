#include "common/rpc.h"
#include <string.h>

static int want(json_t *o, const char *key, bool optional, json_t **ret, struct gr_err *err)
{
    json_t *v = json_object_get(o, key);
    if (v && json_is_null(v) && optional)
        v = NULL;
    if (!v && !optional)
        return gr_fail(err, -EINVAL, "\"%s\" is missing", key);
    *ret = v;
    return 0;
}

static int get_str(json_t *o, const char *key, bool optional, const char **ret, struct gr_err *err)
{
    json_t *v = NULL;
    int r = want(o, key, optional, &v, err);
    if (r < 0 || !v)
        return r;
    if (!json_is_string(v))
        return gr_fail(err, -EINVAL, "\"%s\" must be a string", key);
    if (strlen(json_string_value(v)) != json_string_length(v))
        return gr_fail(err, -EINVAL, "\"%s\" holds a NUL character", key);
    *ret = json_string_value(v);
    return 0;
}

static int get_u64(json_t *o, const char *key, bool optional, uint64_t *ret, struct gr_err *err)
{
    json_t *v = NULL;
    int r = want(o, key, optional, &v, err);
    if (r < 0 || !v)
        return r;
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return gr_fail(err, -EINVAL, "\"%s\" must be a whole number from 0 to 2^63-1", key);
    *ret = (uint64_t)json_integer_value(v);
    return 0;
}

int gr_json_str(json_t *o, const char *key, const char **ret, struct gr_err *err)
{
    return get_str(o, key, false, ret, err);
}

int gr_json_opt_str(json_t *o, const char *key, const char **ret, struct gr_err *err)
{
    return get_str(o, key, true, ret, err);
}

int gr_json_u64(json_t *o, const char *key, uint64_t *ret, struct gr_err *err)
{
    return get_u64(o, key, false, ret, err);
}

int gr_json_opt_u64(json_t *o, const char *key, uint64_t *ret, struct gr_err *err)
{
    return get_u64(o, key, true, ret, err);
}

int gr_json_opt_bool(json_t *o, const char *key, bool *ret, struct gr_err *err)
{
    json_t *v = NULL;
    int r = want(o, key, true, &v, err);
    if (r < 0 || !v)
        return r;
    if (!json_is_boolean(v))
        return gr_fail(err, -EINVAL, "\"%s\" must be true or false", key);
    *ret = json_is_true(v);
    return 0;
}

int gr_json_array(json_t *o, const char *key, json_t **ret, struct gr_err *err)
{
    json_t *v = NULL;
    int r = want(o, key, false, &v, err);
    if (r < 0)
        return r;
    if (!json_is_array(v))
        return gr_fail(err, -EINVAL, "\"%s\" must be an array", key);
    *ret = v;
    return 0;
}
