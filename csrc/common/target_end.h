// Ends what common/target_avx2.h or common/target_avx512.h has begun.
#if defined(__clang__)
#pragma clang attribute pop
#endif
