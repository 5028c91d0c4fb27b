import com.amazonaws.services.lambda.runtime.Context;
import com.amazonaws.services.lambda.runtime.RequestHandler;
import java.util.ArrayList;
import java.util.List;
import org.crac.Core;
import org.crac.Resource;

/** A function with CRaC hooks. It answers which of them have run. */
public class Hooks implements RequestHandler<Object, List<String>>, Resource {
  private final List<String> ran = new ArrayList<>();

  public Hooks() {
    Core.getGlobalContext().register(this);
  }

  @Override
  public void beforeCheckpoint(org.crac.Context<? extends Resource> context) {
    ran.add("before");
  }

  @Override
  public void afterRestore(org.crac.Context<? extends Resource> context) {
    ran.add("after");
  }

  @Override
  public List<String> handleRequest(Object event, Context context) {
    return ran;
  }
}
