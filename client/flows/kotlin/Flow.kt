/** The first clients' flow, through the generated Kotlin client: java FlowKt <base url>. */

import app.aggios.client.apis.AuthApi
import app.aggios.client.apis.HealthApi
import app.aggios.client.apis.MeApi
import app.aggios.client.infrastructure.ApiClient
import app.aggios.client.infrastructure.ClientError
import app.aggios.client.infrastructure.ClientException
import app.aggios.client.infrastructure.Serializer
import app.aggios.client.models.RegistrationInput
import app.aggios.client.models.RegistrationInputTenant
import app.aggios.client.models.Problem
import app.aggios.client.models.Refresh
import app.aggios.client.models.SignIn
import app.aggios.client.models.SignOut

fun main(args: Array<String>) {
    val baseUrl = args[0]
    val auth = AuthApi(baseUrl)
    val me = MeApi(baseUrl)
    val email = "ada@kotlin.example"
    val password = "correct horse battery"

    show("health", HealthApi(baseUrl).getHealth().status)

    val tenant = RegistrationInputTenant(name = "Kotlin", slug = "kotlin")
    val registration = auth.register(RegistrationInput(tenant, name = "Ada", email = email, password = password))
    show("register", "${registration.tenant.slug} ${registration.user.role}")

    show("wrong password", codeOfRefusal { auth.login(SignIn(email, "incorrect horse battery")) })

    val tokens = auth.login(SignIn(email, password))
    ApiClient.accessToken = tokens.accessToken
    show("login", tokens.tokenType)
    show("me", me.getMe().email)

    val refreshed = auth.refresh(Refresh(tokens.refreshToken))
    ApiClient.accessToken = refreshed.accessToken
    show("refresh", if (refreshed.refreshToken != tokens.refreshToken) "rotated" else "the same")
    show("me", me.getMe().email)

    auth.logout(signOut = SignOut(refreshed.refreshToken))
    show("logout", "done")
    show("me", codeOfRefusal { me.getMe() })
    show("refresh", codeOfRefusal { auth.refresh(Refresh(refreshed.refreshToken)) })
}

fun codeOfRefusal(call: () -> Any): String =
    try {
        call()
        "no refusal"
    } catch (refusal: ClientException) {
        val body = (refusal.response as ClientError<*>).body as String
        Serializer.moshi.adapter(Problem::class.java).fromJson(body)!!.code.value
    }

fun show(step: String, value: Any) = println("$step: $value")
