"""The first clients' flow, through the generated Python client: python3 flow.py <base url>."""

import sys

from aggios_client import (
    ApiClient,
    AuthApi,
    Configuration,
    HealthApi,
    MeApi,
    RegistrationInput,
    RegistrationInputTenant,
    Refresh,
    SignIn,
    SignOut,
)
from aggios_client.exceptions import UnauthorizedException

configuration = Configuration(host=sys.argv[1])
api = ApiClient(configuration)
auth, me, health = AuthApi(api), MeApi(api), HealthApi(api)
email, password = "ada@python.example", "correct horse battery"


def code_of_refusal(call):
    try:
        call()
    except UnauthorizedException as refusal:
        return refusal.data.code
    return "no refusal"


def show(step, value):
    print(f"{step}: {value}", flush=True)


show("health", health.get_health().status)

tenant = RegistrationInputTenant(name="Python", slug="python")
registration = auth.register(RegistrationInput(tenant=tenant, name="Ada", email=email, password=password))
show("register", f"{registration.tenant.slug} {registration.user.role.value}")

wrong = SignIn(email=email, password="incorrect horse battery")
show("wrong password", code_of_refusal(lambda: auth.login(wrong)))

tokens = auth.login(SignIn(email=email, password=password))
configuration.access_token = tokens.access_token
show("login", tokens.token_type)
show("me", me.get_me().email)

refreshed = auth.refresh(Refresh(refresh_token=tokens.refresh_token))
configuration.access_token = refreshed.access_token
show("refresh", "rotated" if refreshed.refresh_token != tokens.refresh_token else "the same")
show("me", me.get_me().email)

auth.logout(sign_out=SignOut(refresh_token=refreshed.refresh_token))
show("logout", "done")
show("me", code_of_refusal(me.get_me))
show("refresh", code_of_refusal(lambda: auth.refresh(Refresh(refresh_token=refreshed.refresh_token))))
