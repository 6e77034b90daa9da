package dev.kvasir.examples.devices;

import dev.kvasir.Devices;
import dev.kvasir.examples.terminal.StandardStreams;
import dev.kvasir.examples.terminal.Table;
import dev.kvasir.examples.terminal.Units;
import java.util.Locale;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;

/** What a model can run on here. */
@Command(name = "devices", description = "Lists the devices that a model can run on, for --device.")
public final class DevicesCommand implements Callable<Integer> {
  private final StandardStreams streams;

  /** A command on these streams. */
  public DevicesCommand(StandardStreams streams) {
    this.streams = streams;
  }

  @Override
  public Integer call() {
    var table = new Table("device", "type", "memory", "free", "attention", "description");
    for (var device : Devices.list()) {
      table.row(
          device.name(),
          device.type().name().toLowerCase(Locale.ROOT).replace('_', ' '),
          memory(device.totalMemory()),
          memory(device.freeMemory()),
          device.attentionPath(),
          device.description());
    }
    streams.out().print(table.toText());
    return 0;
  }

  private static String memory(long bytes) {
    return bytes == 0 ? "-" : Units.bytes(bytes);
  }
}
