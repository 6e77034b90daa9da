package dev.kvasir;

import dev.kvasir.internal.llama.ChatTemplate;
import dev.kvasir.internal.llama.NativeModel;
import java.nio.file.Path;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * The weights and the vocabulary of a GGUF file.
 *
 * <p>A model may be used by any number of threads and sessions at once. {@link #close()} ends it
 * for new sessions; the memory goes back when its last session is closed.
 */
public final class Model implements AutoCloseable {
  private final NativeModel model;
  private final ModelOptions options;

  private Model(NativeModel model, ModelOptions options) {
    this.model = model;
    this.options = options;
  }

  /**
   * Loads a model with {@link ModelOptions#defaults()}.
   *
   * @see #load(Path, ModelOptions)
   */
  public static Model load(Path file) {
    return load(file, ModelOptions.defaults());
  }

  /**
   * Loads a model. Blocks until it is loaded.
   *
   * @param file a GGUF file; of a split model the first part
   * @throws ModelLoadException if the file is missing, damaged, or refused by llama.cpp
   * @throws UnsupportedModelException if the model has no KV cache of its own
   * @throws UnknownDeviceException if the options name a device that does not exist
   * @throws LoadCancelledException if the options' listener ended it
   * @throws NativeLibraryException if the native libraries cannot be loaded
   */
  public static Model load(Path file, ModelOptions options) {
    Objects.requireNonNull(file, "file");
    Objects.requireNonNull(options, "options");
    return new Model(NativeModel.load(file, options), options);
  }

  /** Opens a session with {@link SessionOptions#defaults()}. */
  public Session newSession() {
    return newSession(SessionOptions.defaults());
  }

  /**
   * Opens a session: one sequence of tokens with a cache of its own.
   *
   * @throws InvalidOptionException if an option does not fit this model, or the context not into
   *     the memory of this machine
   * @throws UnsupportedModelException if the adaptive cache has no path for an operation of this
   *     model
   * @throws ProfileException if the options' profile was made for another model
   * @throws ModelStateException after {@link #close()}
   */
  public Session newSession(SessionOptions options) {
    Objects.requireNonNull(options, "options");
    return Session.open(this, model, options);
  }

  /**
   * Opens several sequences of tokens that are decoded together, each with a cache of its own.
   *
   * @param size number of sequences
   * @param options of every sequence: its context size, its cache policy or profile; those about
   *     replies must be as by default
   * @throws InvalidOptionException if an option does not fit this model, asks for profiling, or is
   *     about replies, or if the contexts do not fit into the memory of this machine
   * @throws UnsupportedModelException if the adaptive cache has no path for an operation of this
   *     model
   * @throws ProfileException if the options' profile was made for another model
   * @throws ModelStateException after {@link #close()}
   */
  public SessionGroup newSessionGroup(int size, SessionOptions options) {
    Objects.requireNonNull(options, "options");
    return SessionGroup.open(model, size, options);
  }

  /**
   * Splits a text into tokens. It may hold anything: a zero is a character like others, and a
   * surrogate without its other half becomes U+FFFD.
   *
   * @param addSpecial adds the tokens that the model wants at the start and end of a text
   * @param parseSpecial takes the text of a special token for that token instead of plain text
   * @throws TokenizationException if the text has more than 64 MiB in UTF-8, goes on for too long
   *     without a break for the model's pre-tokeniser, or has a part that the vocabulary has no
   *     token for
   */
  public int[] tokenize(String text, boolean addSpecial, boolean parseSpecial) {
    return model.tokenize(text, addSpecial, parseSpecial);
  }

  /**
   * The text of a sequence of tokens, special tokens included. Bytes that are no UTF-8 become
   * U+FFFD.
   */
  public String detokenize(int... tokens) {
    return model.detokenize(tokens);
  }

  /**
   * The text of one token, special tokens included. A token may hold a part of a code point only;
   * such bytes become U+FFFD.
   */
  public String tokenText(int token) {
    model.vocabulary().checkTokens(token);
    return model.vocabulary().textOf(token);
  }

  /** Whether the token ends a generation. */
  public boolean isEndOfGeneration(int token) {
    model.vocabulary().checkTokens(token);
    return model.vocabulary().isEndOfGeneration(token);
  }

  /** What llama.cpp calls the model: architecture, size and quantisation. */
  public String description() {
    return model.description();
  }

  /** The file that the model was loaded from. */
  public Path file() {
    return model.file();
  }

  /** The options that the model was loaded with. */
  public ModelOptions options() {
    return options;
  }

  /**
   * The devices that hold the model's layers, by their names in {@link Devices#list()}, in the
   * order of the layers.
   */
  public List<String> devices() {
    return model.devices();
  }

  /** Number of parameters. */
  public long parameterCount() {
    return model.parameters();
  }

  /** Bytes of all tensors. */
  public long sizeBytes() {
    return model.bytes();
  }

  /** Number of tokens of the context that the model was trained with. */
  public int trainedContextLength() {
    return model.trainedContext();
  }

  /** Number of vocabulary entries; token ids are 0 to this, exclusive. */
  public int vocabularySize() {
    return model.vocabulary().size();
  }

  /** Number of layers. */
  public int layerCount() {
    return model.layers();
  }

  /** The model's own chat template, in Jinja's language. */
  public Optional<String> chatTemplate() {
    return model.chatTemplate().map(ChatTemplate::source);
  }

  /**
   * Ends the model for new sessions. Its memory is freed now, or when its last session closes. Any
   * thread may call it; a second call does nothing.
   */
  @Override
  public void close() {
    model.close();
  }
}
