/* Streams and events. All work is done at once, so waiting takes no time; what counts is that the host waited. */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <time.h>

#include "null_gpu.h"

#undef cudaStreamGetCaptureInfo

static cudaError_t new_stream(cudaStream_t *stream) {
    *stream = calloc(1, 64);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return new_stream(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return new_stream(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return new_stream(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *count) {
    if (id)
        *id = 0;
    return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    COUNT("stream synchronisations");
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    COUNT("device synchronisations");
    return cudaSuccess;
}

/* An event is the moment of its last record, in milliseconds. */

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = calloc(1, 64);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    *(double *)event = now();
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = (float)(*(double *)end - *(double *)start);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    COUNT("event synchronisations");
    return cudaSuccess;
}
