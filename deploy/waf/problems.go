package main

import (
	"encoding/json"
	"net/http"
)

const healthPath = "/waf-health"

type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
}

// The wording is that of src/http/problems.ts, and a test compares both.
var problems = map[int]problem{
	http.StatusBadRequest:            {Code: "malformed_request", Title: "The request is not well-formed HTTP"},
	http.StatusForbidden:             {Code: "request_blocked", Title: "The request looks like an attack"},
	http.StatusRequestTimeout:        {Code: "request_timeout", Title: "The request did not arrive in time"},
	http.StatusRequestEntityTooLarge: {Code: "payload_too_large", Title: "The body is too large"},
	http.StatusServiceUnavailable:    {Code: "unavailable", Title: "A part of the service is away"},
}

// refuse answers in place of the backend. Pages of every origin may read the answer, because it says nothing about anybody.
func refuse(reply http.ResponseWriter, status int, id string) {
	document := problems[status]
	document.Type, document.Status, document.RequestID = "/api/v1/problems/"+document.Code, status, id
	text, _ := json.Marshal(document)
	headers := map[string]string{
		"Access-Control-Allow-Origin":   "*",
		"Access-Control-Expose-Headers": "x-request-id, retry-after",
		"Cache-Control":                 "no-store",
		"Content-Security-Policy":       "default-src 'none'; frame-ancestors 'none'",
		"Content-Type":                  "application/problem+json; charset=utf-8",
		"Strict-Transport-Security":     "max-age=63072000; includeSubDomains",
		"X-Content-Type-Options":        "nosniff",
		"X-Request-Id":                  id,
	}
	for name, value := range headers {
		reply.Header().Set(name, value)
	}
	if status == http.StatusServiceUnavailable {
		reply.Header().Set("Retry-After", "5")
	}
	reply.WriteHeader(status)
	_, _ = reply.Write(text)
}
