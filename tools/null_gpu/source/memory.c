/* Allocation and copies. Device memory is address space without pages behind it until somebody touches it. */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "null_gpu.h"

enum place { NOWHERE, DEVICE, PINNED };

struct block {
    char *start;
    size_t bytes;
    enum place place;
};

static struct block *blocks;
static size_t count, room, in_use;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void add(void *start, size_t bytes, enum place place) {
    pthread_mutex_lock(&lock);
    if (count == room)
        blocks = realloc(blocks, (room = room ? 2 * room : 64) * sizeof *blocks);
    blocks[count++] = (struct block){start, bytes, place};
    pthread_mutex_unlock(&lock);
}

static struct block removed(const void *start) {
    struct block found = {0};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < count; i++)
        if (blocks[i].start == start) {
            found = blocks[i];
            blocks[i] = blocks[--count];
            break;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

static enum place place_of(const void *address) {
    enum place place = NOWHERE;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < count && !place; i++)
        if ((const char *)address >= blocks[i].start && (const char *)address < blocks[i].start + blocks[i].bytes)
            place = blocks[i].place;
    pthread_mutex_unlock(&lock);
    return place;
}

/* Takes bytes of the card's memory, if there are as many. */
static int take(size_t bytes) {
    pthread_mutex_lock(&lock);
    int enough = in_use + bytes <= card()->memory;
    if (enough)
        in_use += bytes;
    pthread_mutex_unlock(&lock);
    return enough;
}

static void give_back(size_t bytes) {
    pthread_mutex_lock(&lock);
    in_use -= bytes;
    pthread_mutex_unlock(&lock);
}

static void *address_space(size_t bytes) {
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    COUNT("cudaMalloc");
    size_t size = bytes ? bytes : 1;
    if (!take(size))
        return cudaErrorMemoryAllocation;
    void *start = address_space(size);
    if (start == MAP_FAILED)
        return cudaErrorMemoryAllocation;
    add(start, size, DEVICE);
    *pointer = start;
    return cudaSuccess;
}

cudaError_t cudaFree(void *pointer) {
    struct block block = removed(pointer);
    if (block.place == DEVICE) {
        give_back(block.bytes);
        munmap(block.start, block.bytes);
    }
    return cudaSuccess;
}

/* The driver's virtual memory, of which PyTorch builds segments that grow: address space is reserved once, and the
   card's memory is created in pieces to be mapped there. A piece is known by its size. Some virtual GPUs cannot:
   NULL_GPU_FIXED_MEMORY stands for those. */
CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *wanted,
                                       CUmemAllocationGranularity_flags flags) {
    *bytes = 2 << 20;
    return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t bytes, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags) {
    void *start = address_space(bytes);
    if (start == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    add(start, bytes, DEVICE);
    *pointer = (CUdeviceptr)start;
    return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes) {
    removed((void *)pointer);
    munmap((void *)pointer, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *piece, size_t bytes, const CUmemAllocationProp *wanted,
                     unsigned long long flags) {
    COUNT("cuMemCreate");
    if (getenv("NULL_GPU_FIXED_MEMORY"))
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    *piece = bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle piece) {
    give_back(piece);
    return CUDA_SUCCESS;
}

cudaError_t cudaMallocAsync(void **pointer, size_t bytes, cudaStream_t stream) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) { return cudaFree(pointer); }
int ncclMemAlloc(void **pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
int ncclMemFree(void *pointer) { return cudaFree(pointer); }

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    if (posix_memalign(pointer, 4096, bytes ? bytes : 1))
        return cudaErrorMemoryAllocation;
    add(*pointer, bytes, PINNED);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *pointer) {
    removed(pointer);
    free(pointer);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }

cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned flags) {
    add(pointer, bytes, PINNED);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *pointer) {
    removed(pointer);
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags) {
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = card()->memory;
    *available = *total - in_use;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    enum place place = place_of(pointer);
    attributes->type = place == DEVICE   ? cudaMemoryTypeDevice
                       : place == PINNED ? cudaMemoryTypeHost
                                         : cudaMemoryTypeUnregistered;
    attributes->device = place ? 0 : -1;
    attributes->devicePointer = place ? (void *)pointer : NULL;
    attributes->hostPointer = place == PINNED ? (void *)pointer : NULL;
    return cudaSuccess;
}

/* What kernels would have computed is not there. A copy to the host brings ones in double precision, by which sums can
   be divided; all that is shorter is zero: losses, flags of overflow. In every floating-point type it is finite. */
static void bring(char *to, size_t bytes) {
    static const double one = 1;
    for (size_t at = 0; at < bytes; at += sizeof one)
        memcpy(to + at, &one, bytes - at < sizeof one ? bytes - at : sizeof one);
}

/* Nothing reads what is copied to the device, and without a write its pages cost no memory. A copy from pageable memory
   makes the host wait. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind == cudaMemcpyHostToDevice) {
        COUNT("copies to the device");
        if (place_of(from) != PINNED)
            COUNT("pageable copies to the device");
    } else if (kind == cudaMemcpyDeviceToHost) {
        COUNT("copies to the host");
        bring(to, bytes);
    } else
        launched("copy within the device");
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    COUNT("synchronous copies");
    return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

cudaError_t cudaMemsetAsync(void *start, int value, size_t bytes, cudaStream_t stream) {
    launched("memset");
    return cudaSuccess;
}

cudaError_t cudaMemset(void *start, int value, size_t bytes) { return cudaMemsetAsync(start, value, bytes, NULL); }
