"""Kernels: each with a plain reference, its fast twins, and one public function that chooses by `impl`."""
