package dev.kvasir.examples.options;

import dev.kvasir.Model;
import dev.kvasir.ModelOptions;
import dev.kvasir.examples.model.DefaultModel;
import dev.kvasir.examples.terminal.ProgressBar;
import dev.kvasir.examples.terminal.StandardStreams;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
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
      split = ",",
      description =
          "Device that holds the model: auto, or a name that 'kvasir devices' lists; several, separated by commas, share"
              + " the layers. Default: auto.")
  private @Nullable List<String> devices;

  @Option(
      names = {"-ngl", "--gpu-layers", "--n-gpu-layers"},
      paramLabel = "N",
      converter = LayersConverter.class,
      description =
          "Layers on the device, the last ones first: a number, or all. The others stay on the CPU, with their part of the"
              + " cache. Default: all.")
  private @Nullable Integer gpuLayers;

  @Option(
      names = {"-sm", "--split-mode"},
      paramLabel = "layer|none",
      converter = SplitConverter.class,
      description =
          "Several devices share the layers, or only the first one is used. Default: layer.")
  private @Nullable Split split;

  @Option(
      names = {"-ts", "--tensor-split"},
      paramLabel = "3,1",
      split = ",|/",
      description =
          "Proportions of the layers on each of several devices. Default: by their free memory.")
  private @Nullable List<Double> tensorSplit;

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
    var names = devices;
    if (names != null && split == Split.NONE) {
      names = names.subList(0, 1);
    }
    options = Given.over(command, options, names, ModelOptions::withDevices, "--device");
    if (split != Split.NONE) {
      options =
          Given.over(
              command, options, tensorSplit, ModelOptions::withTensorSplit, "--tensor-split");
    }
    return Given.over(command, options, gpuLayers, ModelOptions::withGpuLayers, "--gpu-layers");
  }

  /** How several devices share a model. */
  private enum Split {
    NONE,
    LAYER
  }

  /** The ways to share that keep the cache of a layer together. */
  static final class SplitConverter implements ITypeConverter<Split> {
    @Override
    public Split convert(String value) {
      return switch (value.toLowerCase(Locale.ROOT)) {
        case "layer" -> Split.LAYER;
        case "none" -> Split.NONE;
        case "row", "tensor" ->
            throw new TypeConversionException(
                "'"
                    + value
                    + "' splits within a layer, and the cache of a layer is in one place: use layer or none");
        default -> throw new TypeConversionException("'" + value + "' is neither layer nor none");
      };
    }
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
