package dev.kvasir.examples.options;

import dev.kvasir.KvType;
import dev.kvasir.SessionOptions;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Threads, batches and the element types of the cache, by llama.cpp's names. */
public final class SessionArguments {
  @Spec(Spec.Target.MIXEE)
  private CommandSpec command;

  @Option(
      names = {"-t", "--threads"},
      paramLabel = "N",
      description = "Threads that decode. Default: chosen from the number of processors.")
  private @Nullable Integer threads;

  @Option(
      names = {"-tb", "--threads-batch"},
      paramLabel = "N",
      description = "Threads that prefill. Default: as --threads.")
  private @Nullable Integer batchThreads;

  @Option(
      names = {"-b", "--batch-size"},
      paramLabel = "N",
      description = "Most tokens of one call to llama.cpp. Default: 2048.")
  private @Nullable Integer batchSize;

  @Option(
      names = {"-ub", "--ubatch-size"},
      paramLabel = "N",
      description = "Most tokens that are computed at once. Default: 512.")
  private @Nullable Integer microBatchSize;

  @Option(
      names = {"-ctk", "--cache-type-k"},
      paramLabel = "TYPE",
      converter = KvTypeConverter.class,
      description =
          "Type of the cached keys: f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0. Default: f16; of a chat with the default policy q8_0.")
  private @Nullable KvType keyType;

  @Option(
      names = {"-ctv", "--cache-type-v"},
      paramLabel = "TYPE",
      converter = KvTypeConverter.class,
      description =
          "Type of the cached values. Default: f16; of a chat with the default policy q8_0.")
  private @Nullable KvType valueType;

  /** Called by picocli, which sets the command. */
  @SuppressWarnings("NullAway.Init")
  public SessionArguments() {}

  /** Whether a type of the cache was given. */
  public boolean typesGiven() {
    return keyType != null || valueType != null;
  }

  /** The library's defaults with what was given. */
  public SessionOptions options() {
    var options = SessionOptions.defaults();
    options = Given.over(command, options, threads, SessionOptions::withThreads, "--threads");
    options =
        Given.over(
            command, options, batchThreads, SessionOptions::withBatchThreads, "--threads-batch");
    options =
        Given.over(command, options, batchSize, SessionOptions::withBatchSize, "--batch-size");
    options =
        Given.over(
            command, options, microBatchSize, SessionOptions::withMicroBatchSize, "--ubatch-size");
    options = Given.over(command, options, keyType, SessionOptions::withKeyType, "--cache-type-k");
    return Given.over(command, options, valueType, SessionOptions::withValueType, "--cache-type-v");
  }
}
