package main

import (
	"context"
	"math"
	"net/http"
	"regexp"
	"strconv"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var location = regexp.MustCompile(`line \d+:\d+`)

// writeError answers with a google.rpc.Status as JSON. The details have the reason and the invalid fields.
func writeError(ctx context.Context, mux *runtime.ServeMux, marshaler runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	failed := status.Convert(err)
	if !hasReason(failed) {
		failed = ownError(failed)
	}
	for _, detail := range failed.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			seconds := math.Ceil(retry.RetryDelay.AsDuration().Seconds())
			w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
		}
	}
	runtime.DefaultHTTPErrorHandler(ctx, mux, marshaler, w, r, failed.Err())
}

// writeRoutingError answers a call that is no RPC: 404 for an unknown path, 405 for an unknown method.
func writeRoutingError(ctx context.Context, mux *runtime.ServeMux, marshaler runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
	err := &runtime.HTTPStatusError{HTTPStatus: code, Err: status.Error(codes.Unimplemented, "No RPC has this method and path.")}
	runtime.DefaultHTTPErrorHandler(ctx, mux, marshaler, w, r, err)
}

func hasReason(failed *status.Status) bool {
	for _, detail := range failed.Details() {
		if _, ok := detail.(*errdetails.ErrorInfo); ok {
			return true
		}
	}
	return false
}

// ownError replaces the message of an error that is not from the server. The message could contain a value or an address.
func ownError(failed *status.Status) *status.Status {
	switch failed.Code() {
	case codes.InvalidArgument:
		return invalidRequest(failed.Message())
	case codes.Unavailable:
		return status.New(codes.Unavailable, "No Caseload server answers. A write may have succeeded: repeat it with the same request_id.")
	case codes.DeadlineExceeded:
		return status.New(codes.DeadlineExceeded, "The call took too long. A write may have succeeded: repeat it with the same request_id.")
	}
	return status.New(failed.Code(), failed.Code().String())
}

// invalidRequest returns the error that the server sends for a malformed request: INVALID_FIELD with an empty field.
func invalidRequest(message string) *status.Status {
	text := "The JSON body or the query does not match the request of this method."
	if found := location.FindString(message); found != "" {
		text += " The body is wrong at " + found + "."
	}
	failed, _ := status.New(codes.InvalidArgument, text).WithDetails(
		&errdetails.ErrorInfo{Reason: "INVALID_FIELD", Domain: "caseload.v1"},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Description: text}}})
	return failed
}
