package dev.kvasir.examples.options;

import dev.kvasir.Model;
import dev.kvasir.ModelOptions;
import dev.kvasir.examples.model.DefaultModel;
import dev.kvasir.examples.terminal.ProgressBar;
import dev.kvasir.examples.terminal.StandardStreams;
import java.nio.file.Path;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;
import picocli.CommandLine.TypeConversionException;

/** Which model, and where it runs. */
public final class ModelArguments {
  @Spec(Spec.Target.MIXEE)
  private CommandSpec command;

  @Option(
      names = {"-m", "--model"},
      paramLabel = "FILE",
      description = "GGUF file. Without it: " + DefaultModel.NAME + ", fetched on first use.")
  private @Nullable Path file;

  @Option(
      names = {"-dev", "--device"},
      paramLabel = "NAME",
      description =
          "Device that holds the model: auto, or a name that 'kvasir devices' lists. Default: auto.")
  private @Nullable String device;

  @Option(
      names = {"-ngl", "--gpu-layers", "--n-gpu-layers"},
      paramLabel = "N",
      converter = LayersConverter.class,
      description = "Layers on the device: a number, or all. Default: all.")
  private @Nullable Integer gpuLayers;

  /** Called by picocli, which sets the command. */
  @SuppressWarnings("NullAway.Init")
  public ModelArguments() {}

  /**
   * Loads the model, with a progress bar.
   *
   * @param adaptiveCache false for unmodified llama.cpp
   */
  public Model load(StandardStreams streams, boolean adaptiveCache) {
    var options = options();
    var path = file == null ? DefaultModel.fetch(streams) : file;
    try (var bar = new ProgressBar(streams, "Loading " + path.getFileName())) {
      return Model.load(
          path,
          options
              .withAdaptiveCache(adaptiveCache)
              .withProgress(
                  fraction -> {
                    bar.update(fraction, 1);
                    return true;
                  }));
    }
  }

  private ModelOptions options() {
    var options = ModelOptions.defaults();
    options = Given.over(command, options, device, ModelOptions::withDevice, "--device");
    return Given.over(command, options, gpuLayers, ModelOptions::withGpuLayers, "--gpu-layers");
  }

  /** A number of layers; {@code all} and {@code auto} are all of them. */
  static final class LayersConverter implements ITypeConverter<Integer> {
    @Override
    public Integer convert(String value) {
      if (value.equalsIgnoreCase("all") || value.equalsIgnoreCase("auto")) {
        return -1;
      }
      try {
        return Integer.valueOf(value);
      } catch (NumberFormatException e) {
        throw new TypeConversionException(
            "'" + value + "' is neither a number of layers nor 'all'");
      }
    }
  }
}
