/* Kernels: those that a library registers when it is loaded, and those that Triton loads. A launch is only counted. */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <string.h>

#include "null_gpu.h"

/* Names of the registered kernels by the address of their host function: a hash table with open addressing. */
enum { SLOTS = 1 << 18 };
static struct {
    const void *function;
    const char *name;
} registered[SLOTS];

static int slot_of(const void *function) {
    unsigned slot = (unsigned)(((size_t)function >> 4) * 11400714819323198485u >> 46);
    while (registered[slot].function && registered[slot].function != function)
        slot = (slot + 1) % SLOTS;
    return (int)slot;
}

static cudaError_t launch(const void *function) {
    const char *name = registered[slot_of(function)].name;
    launched(name ? name : "unregistered");
    return cudaSuccess;
}

/* What a compiled CUDA library calls when it is loaded. */

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[2];
    return handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterVar(void **handle, char *host, char *address, const char *name, int external, size_t bytes,
                       int constant, int global) {}
char __cudaInitModule(void **handle) { return 0; }

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit, void *thread,
                            void *block, void *block_size, void *grid_size, int *warp) {
    int slot = slot_of(host);
    registered[slot].function = host;
    registered[slot].name = name;
}

/* What kernel<<<grid, block>>> becomes. */

struct configuration {
    dim3 grid, block;
    size_t shared;
    void *stream;
};
static __thread struct configuration pushed[16];
static __thread int depth;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    pushed[depth++] = (struct configuration){grid, block, shared, stream};
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    struct configuration top = pushed[--depth];
    *grid = top.grid;
    *block = top.block;
    *shared = top.shared;
    *(void **)stream = top.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(void **kernel, const void *host) {
    *kernel = (void *)host;
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    return launch(kernel);
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
    return launch(kernel);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *configuration, const void *kernel, void **arguments) {
    return launch(kernel);
}

/* The oldest generation that CUDA 13 has code for. A real card below it needs a PyTorch of CUDA 12, which takes the same
   ways through its host code. */
static const int OLDEST_CODE = 75;

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->maxDynamicSharedSizeBytes = (int)card()->shared;
    int version = 10 * card()->major + card()->minor;
    attributes->binaryVersion = attributes->ptxVersion = version < OLDEST_CODE ? OLDEST_CODE : version;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads,
                                                          size_t shared) {
    *blocks = 2;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                                   size_t shared, unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    static char content[1 << 16];
    *address = content;
    return cudaSuccess;
}

/* The driver, as Triton and torch's own loader of kernels use it. */

static int nothing(void) { return 0; }

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *found) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function)
        *function = (void *)nothing;
    if (found)
        *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

static CUcontext const CONTEXT = (CUcontext)0x1000;
static CUmodule const MODULE = (CUmodule)0x2000;

CUresult cuDeviceGetCount(int *count) { return (CUresult)cudaGetDeviceCount(count); }

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *text, int size, CUdevice device) {
    strncpy(text, card()->name, size);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    if (flags)
        *flags = 0;
    *active = 1;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = CONTEXT;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = CONTEXT;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = current_device();
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = cudaGetErrorString((cudaError_t)error);
    return CUDA_SUCCESS;
}

static CUresult load(CUmodule *module) {
    COUNT("modules loaded");
    *module = MODULE;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoad(CUmodule *module, const char *path) { return load(module); }
CUresult cuModuleLoadData(CUmodule *module, const void *image) { return load(module); }
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, CUjit_option *options,
                            void **values) {
    return load(module);
}

/* A function of a module is its name. */
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    *function = (CUfunction)strdup(name);
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
    *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **arguments,
                        void **extra) {
    launched((const char *)function);
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *configuration, CUfunction function, void **arguments, void **extra) {
    launched((const char *)function);
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads, size_t shared) {
    *blocks = 2;
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *configuration) {
    *clusters = 2;
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
    if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
        *(CUdeviceptr *)value = pointer;
    else
        *(int *)value = CU_MEMORYTYPE_DEVICE;
    return CUDA_SUCCESS;
}
