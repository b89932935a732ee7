// The web application firewall: a proxy that judges each request by the OWASP Core Rule Set, and passes on what is not an attack.
//
// It stands between Traefik and the backend, and takes X-Forwarded-* from Traefik as they are. Bodies are read before they are judged,
// up to the limit in rules.conf, but for uploads, which pass while they come. Answers are not looked at.
//
// A request that is refused gets a problem document like those of the backend. The log says which rules have refused it and in which
// member of the request, and never what was in it: that may be a password.
package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	coreruleset "github.com/corazawaf/coraza-coreruleset/v4"
	"github.com/corazawaf/coraza/v3"
	"github.com/corazawaf/coraza/v3/types"
)

//go:embed rules.conf
var rules string

const (
	stopTimeout = 30 * time.Second
	// for a body that is judged, from the headers on: as long as the backend waits
	bodyTimeout = 30 * time.Second
)

var requestIDPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

func setting(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

func main() {
	address := setting("WAF_LISTEN", ":8084")
	if len(os.Args) > 1 && os.Args[1] == "healthcheck" {
		if err := checkHealth(address); err != nil {
			log.Fatal(err)
		}
		return
	}
	backend, err := url.Parse(setting("WAF_BACKEND", "http://traefik:8083"))
	if err != nil {
		log.Fatal(err)
	}
	waf, err := readRules(os.Getenv("WAF_OWN_RULES"))
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Addr:              address,
		Handler:           judge(waf, passTo(backend)),
		ReadHeaderTimeout: 15 * time.Second,
		// longer than Traefik keeps an idle connection
		IdleTimeout:    75 * time.Second,
		MaxHeaderBytes: 64 << 10,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	stopping, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	go func() {
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			log.Fatal(err)
		}
	}()
	write(map[string]any{"level": "info", "msg": "judging requests", "address": address, "backend": backend.String()})
	<-stopping.Done()
	ending, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	_ = server.Shutdown(ending)
}

// checkHealth asks the process in this container, for its health check. Nothing of it reaches the backend.
func checkHealth(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 3 * time.Second}
	reply, err := client.Get("http://127.0.0.1:" + port + healthPath)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the health is %d", reply.StatusCode)
	}
	return nil
}

// readRules puts the rules together: ours, which include the core rule set, and a file of the operator's own.
func readRules(own string) (coraza.WAF, error) {
	config := coraza.NewWAFConfig().WithRootFS(withDisk{coreruleset.FS}).WithDirectives(rules)
	if own != "" {
		config = config.WithDirectivesFromFile(own)
	}
	return coraza.NewWAF(config)
}

// withDisk finds the files of the core rule set in the program, and all others on the disk.
type withDisk struct{ embedded fs.FS }

func (files withDisk) Open(name string) (fs.File, error) {
	if file, err := files.embedded.Open(name); err == nil {
		return file, nil
	}
	return os.Open(name)
}

// passTo sends requests to the backend as they came.
func passTo(backend *url.URL) http.Handler {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 256
	// shorter than Traefik keeps an idle connection
	transport.IdleConnTimeout = 60 * time.Second
	transport.DisableCompression = true
	return &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		Rewrite: func(proxied *httputil.ProxyRequest) {
			proxied.Out.URL.Scheme = backend.Scheme
			proxied.Out.URL.Host = backend.Host
			// also what Go cannot read: it was judged, and the backend has its own view of it
			proxied.Out.URL.RawQuery = proxied.In.URL.RawQuery
			for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if values := proxied.In.Header.Values(name); len(values) > 0 {
					proxied.Out.Header[name] = values
				}
			}
			if sender, _, err := net.SplitHostPort(proxied.In.RemoteAddr); err == nil {
				proxied.Out.Header["X-Forwarded-For"] = []string{
					strings.Join(append(proxied.In.Header.Values("X-Forwarded-For"), sender), ", "),
				}
			}
		},
		ErrorHandler: func(reply http.ResponseWriter, request *http.Request, err error) {
			if errors.Is(err, context.Canceled) {
				panic(http.ErrAbortHandler)
			}
			id := request.Header.Get("X-Request-Id")
			write(map[string]any{"level": "warn", "msg": "the backend did not answer", "request_id": id, "err": err.Error()})
			refuse(reply, http.StatusServiceUnavailable, id)
		},
	}
}

// judge lets a request through to next, or refuses it.
func judge(waf coraza.WAF, next http.Handler) http.Handler {
	return http.HandlerFunc(func(reply http.ResponseWriter, request *http.Request) {
		if request.URL.Path == healthPath && request.Header.Get("X-Forwarded-For") == "" {
			reply.WriteHeader(http.StatusNoContent)
			return
		}
		id := request.Header.Get("X-Request-Id")
		if !requestIDPattern.MatchString(id) {
			id = rand.Text()
			request.Header.Set("X-Request-Id", id)
		}
		transaction := waf.NewTransactionWithID(id)
		connection := http.NewResponseController(reply)
		_ = connection.SetReadDeadline(time.Now().Add(bodyTimeout))
		interruption, err := examine(transaction, request)
		_ = connection.SetReadDeadline(time.Time{})
		if err == nil && interruption == nil {
			// before the answer, because an upload takes long and needs none of it
			_ = transaction.Close()
			next.ServeHTTP(reply, request)
			return
		}
		defer transaction.Close()
		if err != nil {
			// the body did not come, or not all of it
			status := http.StatusBadRequest
			if errors.Is(err, os.ErrDeadlineExceeded) {
				status = http.StatusRequestTimeout
			}
			reply.Header().Set("Connection", "close")
			refuse(reply, status, id)
			return
		}
		status := interruption.Status
		if status != http.StatusBadRequest && status != http.StatusRequestEntityTooLarge {
			status = http.StatusForbidden
		}
		report(transaction, request, id, status)
		reply.Header().Set("Connection", "close")
		refuse(reply, status, id)
	})
}

// examine runs the rules for a request. The body, as far as it was read for that, is put back.
func examine(transaction types.Transaction, request *http.Request) (*types.Interruption, error) {
	client := strings.TrimSpace(strings.Split(request.Header.Get("X-Forwarded-For"), ",")[0])
	transaction.ProcessConnection(client, 0, "", 0)
	transaction.ProcessURI(request.RequestURI, request.Method, request.Proto)
	for name, values := range request.Header {
		for _, value := range values {
			transaction.AddRequestHeader(name, value)
		}
	}
	// Go keeps these two elsewhere
	transaction.AddRequestHeader("Host", request.Host)
	transaction.SetServerName(request.Host)
	for _, coding := range request.TransferEncoding {
		transaction.AddRequestHeader("Transfer-Encoding", coding)
	}
	if interruption := transaction.ProcessRequestHeaders(); interruption != nil {
		return interruption, nil
	}
	if transaction.IsRequestBodyAccessible() && request.Body != nil && request.Body != http.NoBody {
		interruption, _, err := transaction.ReadRequestBodyFrom(request.Body)
		if err != nil || interruption != nil {
			return interruption, err
		}
		read, err := transaction.RequestBodyReader()
		if err != nil {
			return nil, err
		}
		// a body that was read is in memory, which the transaction takes back when it closes
		body, err := io.ReadAll(read)
		if err != nil {
			return nil, err
		}
		request.Body = io.NopCloser(io.MultiReader(strings.NewReader(string(body)), request.Body))
	}
	return transaction.ProcessRequestBody()
}

type finding struct {
	ID  int      `json:"id"`
	Msg string   `json:"msg"`
	At  []string `json:"at"`
}

var plainSegment = regexp.MustCompile(`^[A-Za-z0-9._-]{0,36}$`)

// report writes one line about a refusal: the rules and where they matched, without any value.
func report(transaction types.Transaction, request *http.Request, id string, status int) {
	findings := []finding{}
	for _, match := range transaction.MatchedRules() {
		// those of 901 prepare, those of 949 add up
		if id := match.Rule().ID(); match.Message() == "" || id/1000 == 901 || id/1000 >= 949 {
			continue
		}
		found := finding{ID: match.Rule().ID(), Msg: match.Message()}
		for _, data := range match.MatchedDatas() {
			at := data.Variable().Name()
			if data.Key() != "" && plainSegment.MatchString(data.Key()) {
				at += ":" + data.Key()
			}
			found.At = append(found.At, at)
		}
		findings = append(findings, found)
	}
	segments := strings.Split(request.URL.EscapedPath(), "/")
	for index, segment := range segments {
		// tokens of links are longer than names and ids
		if !plainSegment.MatchString(segment) {
			segments[index] = "*"
		}
	}
	write(map[string]any{
		"level": "warn", "msg": "refused", "request_id": id, "status": status,
		"client": strings.Split(request.Header.Get("X-Forwarded-For"), ",")[0],
		"host":   request.Host, "method": request.Method, "path": strings.Join(segments, "/"), "rules": findings,
	})
}

func write(line map[string]any) {
	line["time"] = time.Now().UTC().Format(time.RFC3339Nano)
	text, _ := json.Marshal(line)
	fmt.Println(string(text))
}
