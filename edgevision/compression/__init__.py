"""Deep Compression for storage: shared weights found by k-means, entropy-coded files. numpy and the standard library.

Source: S. Han, H. Mao, W. Dally, Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
Quantization and Huffman Coding, arXiv 1510.00149.
"""
