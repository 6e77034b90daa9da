package dev.kvasir.internal.llama.gguf;

/**
 * What a header says of a tensor.
 *
 * @param dimensions their number
 * @param shape number of elements in each dimension, the adjacent ones first, for messages
 * @param rows number of rows, in all dimensions but the first
 * @param type number of its ggml type
 * @param typeName ggml's name of that type
 * @param offset of its first byte, from the beginning of the data
 * @param bytes its size
 */
record TensorInfo(
    String name,
    int dimensions,
    String shape,
    long rows,
    int type,
    String typeName,
    long offset,
    long bytes) {
  String describe() {
    return name + " " + shape;
  }
}
