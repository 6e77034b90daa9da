/* Stands in for a ggml of another build that everything in the process finds first. */
const char * ggml_version(void);

const char * ggml_version(void) { return "0.1.0"; }
