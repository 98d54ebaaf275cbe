#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// The instructions that C++ has no name for, each as a function.
namespace curvext::cuda {
namespace {

__device__ unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

// Starts a copy of 16 bytes to shared memory, or of zeros where row is not below rows; addresses are multiples of 16.
__device__ void copy_async(void* shared, const void* global, int row, int rows) {
  asm volatile(
      "{\n\t.reg .pred unwanted;\n\tsetp.ge.s32 unwanted, %2, %3;\n\t"
      "cp.async.cg.shared.global [%0], [%1], 16, unwanted;\n\t}" ::"r"(shared_address(shared)),
      "l"(global), "r"(row), "r"(rows)
      : "memory");
}

// Closes the group of the copies that this thread has started.
__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until of this thread's groups at most the last `Pending` are on their way.
template <int Pending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// The shared memory that a launch gives.
template <class T>
__device__ T& given_shared() {
  extern __shared__ __align__(128) unsigned char curvext_given_shared[];
  return *reinterpret_cast<T*>(curvext_given_shared);
}

// Launches with one T in shared memory for each block, more than the 48 KB that need no permission.
template <class T, class... P, class... A>
cudaError_t launch_with(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A... arguments) {
  const cudaError_t allowed = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(T)));
  if (allowed != cudaSuccess) return allowed;
  kernel<<<grid, block, sizeof(T), stream>>>(arguments...);
  return cudaGetLastError();
}

// Four 8x8 tiles of 16-bit values stored [k][column], transposed into mma fragments.
__device__ void load_transposed(unsigned (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}

template <class H>
__device__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ void multiply<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ void multiply<__half>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ void multiply_tf32(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Hides how a number came about, so that the compiler keeps it in a register and does not form it anew in a loop.
__device__ int kept(int x) {
  asm volatile("mov.b32 %0, %0;" : "+r"(x));
  return x;
}

// Two values rounded to 16 bits, the first in the low half of the word.
template <class H>
__device__ unsigned packed(float first, float second);

template <>
__device__ unsigned packed<__nv_bfloat16>(float first, float second) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

template <>
__device__ unsigned packed<__half>(float first, float second) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

// Each of two bfloat16 values within the largest finite ones.
__device__ unsigned clamped_bfloat16(unsigned word) {
  asm("min.bf16x2 %0, %0, %1;" : "+r"(word) : "r"(0x7f7f7f7fu));
  asm("max.bf16x2 %0, %0, %1;" : "+r"(word) : "r"(0xff7fff7fu));
  return word;
}

// The squares of two bfloat16 values, each rounded once.
__device__ unsigned squared_bfloat16(unsigned word) {
  asm("fma.rn.bf16x2 %0, %0, %0, %1;" : "+r"(word) : "r"(0x80008000u));
  return word;
}

// To the 10 bits of TF32; ties away from zero, or to even where the processor does that in one instruction.
__device__ unsigned rounded_to_tf32(float x) {
  unsigned bits;
#if __CUDA_ARCH__ >= 900
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
  return bits;
}

}  // namespace
}  // namespace curvext::cuda
