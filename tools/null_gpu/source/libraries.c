/* cuBLAS and NCCL. Their functions have so many arguments that most are declared without them: the caller passes
   them in registers and on the stack, and nobody looks. */
#include <stdlib.h>
#include <string.h>

#include "null_gpu.h"

static int created(void **handle) {
    *handle = calloc(1, 4096);
    return 0;
}

static int destroyed(void *handle) {
    free(handle);
    return 0;
}

static int zero(int *value) {
    *value = 0;
    return 0;
}

static int product(const char *kind) {
    COUNT("matrix products");
    launched(kind);
    return 0;
}

int cublasCreate_v2(void **handle) { return created(handle); }
int cublasDestroy_v2(void *handle) { return destroyed(handle); }

int cublasGetMathMode(void *handle, int *mode) { return zero(mode); }
int cublasGetPointerMode_v2(void *handle, int *mode) { return zero(mode); }

int cublasGemmEx() { return product("cublasGemmEx"); }
int cublasSgemm_v2() { return product("cublasSgemm"); }
int cublasGemmStridedBatchedEx() { return product("cublasGemmStridedBatchedEx"); }
int cublasSgemmStridedBatched() { return product("cublasSgemmStridedBatched"); }
int cublasLtMatmul() { return product("cublasLtMatmul"); }

int cublasLtCreate(void **handle) { return created(handle); }
int cublasLtMatmulDescCreate(void **handle) { return created(handle); }
int cublasLtMatmulDescDestroy(void *handle) { return destroyed(handle); }
int cublasLtMatmulPreferenceCreate(void **handle) { return created(handle); }
int cublasLtMatmulPreferenceDestroy(void *handle) { return destroyed(handle); }
int cublasLtMatrixLayoutCreate(void **handle) { return created(handle); }
int cublasLtMatrixLayoutDestroy(void *handle) { return destroyed(handle); }

/* One algorithm is found for every product. 96 bytes is the size of a cublasLtMatmulHeuristicResult_t. */
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, void *results, int *found) {
    memset(results, 0, 96);
    *found = 1;
    return 0;
}

int ncclGetVersion(int *version) {
    *version = 22809;
    return 0;
}

static int communicator(void **communicator) {
    COUNT("NCCL communicators");
    return created(communicator);
}

int ncclCommInitRank(void **handle) { return communicator(handle); }
int ncclCommInitRankConfig(void **handle) { return communicator(handle); }
int ncclCommInitRankScalable(void **handle) { return communicator(handle); }
int ncclCommSplit(void *parent, int color, int key, void **handle) { return communicator(handle); }

int ncclCommGetAsyncError(void *handle, int *error) { return zero(error); }

static int set_by_launcher(const char *key, int otherwise) {
    const char *value = getenv(key);
    return value ? atoi(value) : otherwise;
}

int ncclCommCount(void *handle, int *count) {
    *count = set_by_launcher("WORLD_SIZE", 1);
    return 0;
}

int ncclCommUserRank(void *handle, int *rank) {
    *rank = set_by_launcher("RANK", 0);
    return 0;
}

const char *ncclGetErrorString(int error) { return "an error of the null GPU"; }
const char *ncclGetLastError(void *handle) { return ""; }

static int collective(const char *name) {
    COUNT("NCCL operations");
    launched(name);
    return 0;
}

int ncclAllReduce() { return collective("ncclAllReduce"); }
int ncclAllGather() { return collective("ncclAllGather"); }
int ncclBroadcast() { return collective("ncclBroadcast"); }
int ncclReduce() { return collective("ncclReduce"); }
int ncclReduceScatter() { return collective("ncclReduceScatter"); }
int ncclSend() { return collective("ncclSend"); }
int ncclRecv() { return collective("ncclRecv"); }
