// The first clients' flow, through the generated Go client: flow <base url>.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	aggios "aggios.app/clients/go"
)

const (
	email    = "ada@go.example"
	password = "correct horse battery"
)

func main() {
	configuration := aggios.NewConfiguration()
	configuration.Servers = aggios.ServerConfigurations{{URL: os.Args[1]}}
	client := aggios.NewAPIClient(configuration)
	anonymous := context.Background()

	health, _, err := client.HealthAPI.GetHealth(anonymous).Execute()
	must(err)
	show("health", health.Status)

	tenant := *aggios.NewRegistrationInputTenant("Go", "go-agency")
	registration, _, err := client.AuthAPI.Register(anonymous).
		RegistrationInput(*aggios.NewRegistrationInput(tenant, "Ada", email, password)).Execute()
	must(err)
	show("register", registration.Tenant.Slug, registration.User.Role)

	signIn := func(secret string) (*aggios.TokenReply, error) {
		tokens, _, err := client.AuthAPI.Login(anonymous).SignIn(*aggios.NewSignIn(email, secret)).Execute()
		return tokens, err
	}
	_, err = signIn("incorrect horse battery")
	show("wrong password", codeOf(err))
	tokens, err := signIn(password)
	must(err)
	show("login", tokens.TokenType)

	me := func(tokens *aggios.TokenReply) (*aggios.User, error) {
		as := context.WithValue(anonymous, aggios.ContextAccessToken, tokens.AccessToken)
		user, _, err := client.MeAPI.GetMe(as).Execute()
		return user, err
	}
	user, err := me(tokens)
	must(err)
	show("me", user.Email)

	refresh := func(token string) (*aggios.TokenReply, error) {
		next, _, err := client.AuthAPI.Refresh(anonymous).Refresh(*aggios.NewRefresh(token)).Execute()
		return next, err
	}
	refreshed, err := refresh(tokens.RefreshToken)
	must(err)
	if refreshed.RefreshToken == tokens.RefreshToken {
		show("refresh", "the same")
	} else {
		show("refresh", "rotated")
	}
	user, err = me(refreshed)
	must(err)
	show("me", user.Email)

	signOut := aggios.NewSignOut()
	signOut.SetRefreshToken(refreshed.RefreshToken)
	_, err = client.AuthAPI.Logout(anonymous).SignOut(*signOut).Execute()
	must(err)
	show("logout", "done")
	_, err = me(refreshed)
	show("me", codeOf(err))
	_, err = refresh(refreshed.RefreshToken)
	show("refresh", codeOf(err))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// codeOf is the code of the problem that a call was refused with.
func codeOf(err error) string {
	var refusal *aggios.GenericOpenAPIError
	if !errors.As(err, &refusal) {
		return fmt.Sprintf("no refusal: %v", err)
	}
	return refusal.Model().(aggios.Problem).Code
}

func show(step string, values ...any) {
	fmt.Print(step, ": ", fmt.Sprintln(values...))
}
