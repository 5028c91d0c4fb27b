import com.amazonaws.services.lambda.runtime.Context;
import com.amazonaws.services.lambda.runtime.RequestHandler;
import com.amazonaws.services.lambda.runtime.logging.LogLevel;
import java.util.Map;

/**
 * The function of the clients matrix on aws-lambda-java-runtime-interface-client. What
 * all functions of the matrix do is said in ../../clients_test.go.
 */
public class Handler implements RequestHandler<Map<String, Object>, Map<String, Object>> {
  private int calls;
  private byte[] last;

  @Override
  public Map<String, Object> handleRequest(Map<String, Object> event, Context context) {
    calls++;
    switch (String.valueOf(event.get("do"))) {
      case "fail":
        throw new Refused("as asked");
      case "log":
        context.getLogger().log("a message", LogLevel.WARN);
        break;
      case "sleep":
        sleep();
        break;
      case "heap":
        return heap();
      default:
    }
    return Map.of(
        "requestId", context.getAwsRequestId(),
        "function", context.getFunctionName(),
        "version", context.getFunctionVersion(),
        "memory", context.getMemoryLimitInMB(),
        "calls", calls,
        "event", event);
  }

  private static void sleep() {
    try {
      Thread.sleep(3600 * 1000);
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Makes 2 GiB of garbage, and tells how large the heap may become, in MiB. */
  private Map<String, Object> heap() {
    for (int i = 0; i < 2048; i++) {
      last = new byte[1 << 20];
    }
    return Map.of("maxHeap", Runtime.getRuntime().maxMemory() >> 20, "last", last.length);
  }
}

class Refused extends RuntimeException {
  Refused(String message) {
    super(message);
  }
}
