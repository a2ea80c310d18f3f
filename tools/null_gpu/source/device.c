/* The card that the environment describes: its properties, as the CUDA runtime and the driver tell them. */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "null_gpu.h"

#undef cudaGetDeviceProperties

static const char *set(const char *key, const char *otherwise) {
    const char *value = getenv(key);
    return value ? value : otherwise;
}

/* How many devices CUDA_VISIBLE_DEVICES leaves: it is a list of their indices, and ends at the first that is not there. */
static int visible(int devices) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    if (!list)
        return devices;
    int count = 0;
    for (char *end; *list; list = *end ? end + 1 : end, count++) {
        long index = strtol(list, &end, 10);
        if (end == list || index < 0 || index >= devices)
            break;
    }
    return count;
}

const struct card *card(void) {
    static struct card one;
    if (!one.name) {
        int capability = atoi(set("NULL_GPU_CAPABILITY", "90"));
        one.devices = visible(atoi(set("NULL_GPU_DEVICES", "1")));
        one.major = capability / 10;
        one.minor = capability % 10;
        one.multiprocessors = atoi(set("NULL_GPU_MULTIPROCESSORS", "132"));
        one.memory = strtoull(set("NULL_GPU_MEMORY", "85899345920"), NULL, 10);
        one.shared = strtoull(set("NULL_GPU_SHARED", "232448"), NULL, 10);
        one.name = set("NULL_GPU_NAME", "null GPU");
    }
    return &one;
}

static __thread int device;

int current_device(void) { return device; }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = card()->devices;
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int *current) {
    *current = device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int chosen) {
    if (chosen < 0 || chosen >= card()->devices)
        return cudaErrorInvalidDevice;
    device = chosen;
    return cudaSuccess;
}

static int attribute(int which) {
    switch (which) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
        return 1024;
    case cudaDevAttrMaxBlockDimZ:
        return 64;
    case cudaDevAttrMaxGridDimX:
        return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
        return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        return (int)card()->shared;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        return (int)card()->shared + 1024;
    case cudaDevAttrTotalConstantMemory:
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
        return 65536;
    case cudaDevAttrWarpSize:
    case cudaDevAttrMaxBlocksPerMultiprocessor:
        return 32;
    case cudaDevAttrClockRate: /* kHz */
        return 1500000;
    case cudaDevAttrMemoryClockRate: /* kHz */
        return 2000000;
    case cudaDevAttrGlobalMemoryBusWidth: /* bits */
        return 4096;
    case cudaDevAttrL2CacheSize:
        return 32 << 20;
    case cudaDevAttrMultiProcessorCount:
        return card()->multiprocessors;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        return 2048;
    case cudaDevAttrComputeCapabilityMajor:
        return card()->major;
    case cudaDevAttrComputeCapabilityMinor:
        return card()->minor;
    default: /* capabilities that every card has */
        return 1;
    }
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int of) {
    *value = attribute((int)which);
    return cudaSuccess;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice of) {
    *value = attribute((int)which); /* both interfaces number them alike */
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int of) {
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, "%s", card()->name);
    properties->major = card()->major;
    properties->minor = card()->minor;
    properties->totalGlobalMem = card()->memory;
    properties->multiProcessorCount = card()->multiprocessors;
    properties->warpSize = attribute(cudaDevAttrWarpSize);
    properties->maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock);
    properties->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
    properties->maxBlocksPerMultiProcessor = attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
    properties->regsPerBlock = attribute(cudaDevAttrMaxRegistersPerBlock);
    properties->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
    properties->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    properties->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    properties->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    properties->totalConstMem = attribute(cudaDevAttrTotalConstantMemory);
    properties->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
    properties->memoryBusWidth = attribute(cudaDevAttrGlobalMemoryBusWidth);
    for (int axis = 0; axis < 3; axis++) {
        properties->maxThreadsDim[axis] = attribute(cudaDevAttrMaxBlockDimX + axis);
        properties->maxGridSize[axis] = attribute(cudaDevAttrMaxGridDimX + axis);
    }
    properties->textureAlignment = 512;
    properties->concurrentKernels = properties->unifiedAddressing = properties->managedMemory = 1;
    properties->canMapHostMemory = 1;
    properties->asyncEngineCount = 3;
    properties->pciBusID = of;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *properties, int of) {
    return cudaGetDeviceProperties(properties, of);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int of, int peer) {
    *can = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int of) {
    snprintf(text, size, "0000:%02x:00.0", of);
    return cudaSuccess;
}

static cudaError_t version(int *value) {
    *value = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *value) { return version(value); }
cudaError_t cudaRuntimeGetVersion(int *value) { return version(value); }
CUresult cuDriverGetVersion(int *value) { return (CUresult)version(value); }

const char *cudaGetErrorName(cudaError_t error) { return error ? "cudaErrorOfTheNullGPU" : "cudaSuccess"; }

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    default:
        return "an error of the null GPU";
    }
}
