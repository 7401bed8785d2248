// float16 and bfloat16 as stored: conversions to and from float32, one number at a time, without branches.
//
// Everything here is in an unnamed namespace: each translation unit that includes it is compiled for another
// instruction set and must keep its own copy.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline float float_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_from_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct Bfloat16 {
    using Stored = uint16_t;

    static float to_float(Stored stored) { return float_from_bits(static_cast<uint32_t>(stored) << 16); }

    // To nearest, ties to even; every NaN becomes a quiet one.
    static Stored from_float(float value) {
        const uint32_t bits = bits_from_float(value);
        const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
        const uint32_t quiet = (bits >> 16) | 0x0040u;
        return static_cast<Stored>((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
    }
};

struct Float16 {
    using Stored = uint16_t;

    static float to_float(Stored stored) {
        const uint32_t sign = static_cast<uint32_t>(stored & 0x8000u) << 16;
        const uint32_t magnitude = stored & 0x7FFFu;
        // Moved into place, a half has an exponent too small by 112; infinity and NaN need 112 more.
        const uint32_t moved = magnitude << 13;
        const uint32_t normal = moved + (112u << 23) + (magnitude >= 0x7C00u ? 112u << 23 : 0u);
        // A subnormal half is an integer multiple of 2^-24.
        const uint32_t subnormal = bits_from_float(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
        return float_from_bits(sign | (magnitude < 0x0400u ? subnormal : normal));
    }

    // To nearest, ties to even; what is beyond the largest half becomes infinity, every NaN a quiet one.
    static Stored from_float(float value) {
        const uint32_t bits = bits_from_float(value);
        const uint32_t sign = (bits >> 16) & 0x8000u;
        const uint32_t magnitude = bits & 0x7FFFFFFFu;
        const uint32_t normal = (magnitude - (112u << 23) + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
        // Adding 1/2 leaves the multiple of 2^-24 in the low bits, correctly rounded by the addition itself.
        const uint32_t subnormal = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3F000000u;
        uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
        result = magnitude >= 0x47800000u ? 0x7C00u : result;
        result = magnitude > 0x7F800000u ? 0x7E00u : result;
        return static_cast<Stored>(sign | result);
    }
};

}  // namespace
