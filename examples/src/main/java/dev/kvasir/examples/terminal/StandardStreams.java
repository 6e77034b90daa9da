package dev.kvasir.examples.terminal;

import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.jline.terminal.impl.exec.ExecTerminalProvider;
import org.jline.terminal.spi.SystemStream;
import org.jline.terminal.spi.TerminalProvider;

/**
 * The standard streams and which of them are a terminal. Text is UTF-8 whatever the locale says, as
 * it is in llama.cpp.
 *
 * @param in standard input
 * @param out standard output: results only
 * @param err standard error: everything else
 * @param inTerminal whether {@code in} is a terminal
 * @param outTerminal whether {@code out} is a terminal
 * @param errTerminal whether {@code err} is a terminal
 */
public record StandardStreams(
    InputStream in,
    PrintStream out,
    PrintStream err,
    boolean inTerminal,
    boolean outTerminal,
    boolean errTerminal) {

  /** The streams of this process. */
  public static StandardStreams ofProcess() {
    var provider = provider();
    return new StandardStreams(
        new FileInputStream(FileDescriptor.in),
        new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8),
        new PrintStream(new FileOutputStream(FileDescriptor.err), true, StandardCharsets.UTF_8),
        provider.isSystemStream(SystemStream.Input),
        provider.isSystemStream(SystemStream.Output),
        provider.isSystemStream(SystemStream.Error));
  }

  /** Whether a conversation can be held: line editing needs both directions. */
  public boolean interactive() {
    return inTerminal && outTerminal;
  }

  private static TerminalProvider provider() {
    try {
      return TerminalProvider.load("ffm");
    } catch (IOException | RuntimeException | LinkageError e) {
      return new ExecTerminalProvider(); // asks test(1)
    }
  }
}
