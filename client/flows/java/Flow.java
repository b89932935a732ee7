/** The first clients' flow, through the generated Java client: java -cp <its classes> Flow.java <base url>. */

import app.aggios.client.ApiClient;
import app.aggios.client.ApiException;
import app.aggios.client.apis.AuthApi;
import app.aggios.client.apis.HealthApi;
import app.aggios.client.apis.MeApi;
import app.aggios.client.models.Problem;
import app.aggios.client.models.Refresh;
import app.aggios.client.models.RegistrationInput;
import app.aggios.client.models.RegistrationInputTenant;
import app.aggios.client.models.SignIn;
import app.aggios.client.models.SignOut;
import java.util.concurrent.atomic.AtomicReference;

public class Flow {
  interface Call {
    Object run() throws ApiException;
  }

  static final ApiClient client = new ApiClient();
  static final AtomicReference<String> accessToken = new AtomicReference<>();

  public static void main(String[] args) throws Exception {
    client.updateBaseUri(args[0]);
    client.setRequestInterceptor(request -> {
      if (accessToken.get() != null) request.header("Authorization", "Bearer " + accessToken.get());
    });
    AuthApi auth = new AuthApi(client);
    MeApi me = new MeApi(client);
    String email = "ada@java.example";
    String password = "correct horse battery";

    show("health", new HealthApi(client).getHealth().getStatus());

    RegistrationInputTenant tenant = new RegistrationInputTenant().name("Java").slug("java");
    var registration =
        auth.register(new RegistrationInput().tenant(tenant).name("Ada").email(email).password(password), null);
    show("register", registration.getTenant().getSlug() + " " + registration.getUser().getRole());

    SignIn wrong = new SignIn().email(email).password("incorrect horse battery");
    show("wrong password", codeOfRefusal(() -> auth.login(wrong, null)));

    var tokens = auth.login(new SignIn().email(email).password(password), null);
    accessToken.set(tokens.getAccessToken());
    show("login", tokens.getTokenType());
    show("me", me.getMe(null).getEmail());

    var refreshed = auth.refresh(new Refresh().refreshToken(tokens.getRefreshToken()), null);
    accessToken.set(refreshed.getAccessToken());
    show("refresh", refreshed.getRefreshToken().equals(tokens.getRefreshToken()) ? "the same" : "rotated");
    show("me", me.getMe(null).getEmail());

    auth.logout(null, new SignOut().refreshToken(refreshed.getRefreshToken()));
    show("logout", "done");
    show("me", codeOfRefusal(() -> me.getMe(null)));
    show("refresh", codeOfRefusal(() -> auth.refresh(new Refresh().refreshToken(refreshed.getRefreshToken()), null)));
  }

  static Object codeOfRefusal(Call call) throws Exception {
    try {
      call.run();
      return "no refusal";
    } catch (ApiException refusal) {
      return client.getObjectMapper().readValue(refusal.getResponseBody(), Problem.class).getCode();
    }
  }

  static void show(String step, Object value) {
    System.out.println(step + ": " + value);
  }
}
