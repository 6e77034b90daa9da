import org.jspecify.annotations.NullMarked;

/**
 * The kvasir command line: chat, profile, bench, eval and devices over the public API of
 * dev.kvasir.
 */
@NullMarked
module dev.kvasir.examples {
  requires static org.jspecify;
  requires com.fasterxml.jackson.databind;
  requires dev.kvasir;
  requires info.picocli;
  requires java.logging;
  requires jdk.unsupported; // JLine reaches sun.misc.Signal through reflection
  requires org.jline;

  opens dev.kvasir.examples to
      info.picocli;
  opens dev.kvasir.examples.bench to
      info.picocli;
  opens dev.kvasir.examples.chat to
      info.picocli;
  opens dev.kvasir.examples.devices to
      info.picocli;
  opens dev.kvasir.examples.eval to
      info.picocli;
  opens dev.kvasir.examples.options to
      info.picocli;
  opens dev.kvasir.examples.profile to
      info.picocli;
}
