/* A supervisor that saves memory, beside a storage service of another release: who is to blame is told. */
#include "common/rpc.h"
#include "hv/supervisor_int.h"
#include "tests/lib/test.h"
#include <string.h>
#include <sys/stat.h>

static int running(struct hv_engine *e, enum hv_state *ret, struct gr_err *err)
{
    *ret = HV_RUNNING;
    return 0;
}

static const struct hv_engine_ops ops = {.name = "none", .state = running};
static const struct gr_rpc_method no_methods[] = {{NULL, NULL}};

/* What the service does not know is not what the supervisor does not know, which a stop and a start of the machine would help. */
static int service_is_older(void *arg)
{
    struct gr_home *home = arg;
    struct gr_loop *loop = gr_fiber_loop();
    struct gr_err err = {0};
    struct gr_rpc_server *service = NULL;
    struct hv_engine engine = {.ops = &ops};
    struct hv_sup_opts opts = {.loop = loop};
    char *socket = gr_home_path(home, "run/storaged.sock"), *dir = test_path("vm");
    struct hv_sup s = {.opts = &opts, .storage = {loop, home}, .engine = &engine, .console = (struct hv_console *)&engine, .dir = dir, .vm.path = strdup("ds/web")};
    json_t *params = json_pack("{s:s, s:i, s:[s], s:s, s:s, s:s}", "file", "ds/web/web-a.vmem", "limit", 1 << 20, "disks", "ds/web/disk0", "name", "a", "group",
                               "12345678-1234-4234-8234-123456789012", "key", "0123456789abcdef"), *ret = NULL;
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(hv_freezer_new(loop, NULL, NULL, NULL, &s.freezer), 0);
    assert_int_equal(gr_rpc_server_new(loop, &service), 0);
    assert_int_equal(gr_rpc_server_add(service, no_methods, NULL), 0);
    assert_int_equal(gr_rpc_server_listen(service, socket, &err), 0);
    assert_int_equal(hv_sup_m_save_encrypted(&s, NULL, params, &ret, &err), -GR_EVERSION);
    assert_non_null(strstr(err.text, "'ds/web', at the storage service: "));
    assert_int_equal(hv_sup_m_save(&s, NULL, params, &ret, &err), -GR_EVERSION);
    gr_rpc_server_free(service);
    hv_freezer_free(s.freezer);
    json_decref(params);
    free(s.vm.path);
    free(socket);
    free(dir);
    return 0;
}

static void test_service_is_older(void **state)
{
    struct gr_home *home = test_home("home");
    test_in_fiber(service_is_older, home);
    gr_home_free(home);
}

TEST_MAIN(TEST(test_service_is_older))
