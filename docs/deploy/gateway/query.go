package main

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

var errUnknownParameter = status.Error(codes.InvalidArgument, "unknown parameter")

// strictQuery rejects query parameters that are no field of the request, or whose field is in the path or the body. The
// default parser ignores them.
type strictQuery struct{ runtime.DefaultQueryParser }

func (strict strictQuery) Parse(request proto.Message, values url.Values, filter *utilities.DoubleArray) error {
	for name := range values {
		path, known := contractPath(request.ProtoReflect().Descriptor(), strings.Split(name, "."))
		if !known || filter.HasCommonPrefix(path) {
			return errUnknownParameter
		}
	}
	return strict.DefaultQueryParser.Parse(request, values, filter)
}

// contractPath returns the path of a field with the contract's names, and whether the message has this field.
func contractPath(message protoreflect.MessageDescriptor, path []string) ([]string, bool) {
	var names []string
	for _, name := range path {
		if message == nil {
			return nil, false
		}
		field := message.Fields().ByName(protoreflect.Name(name))
		if field == nil {
			field = message.Fields().ByJSONName(name)
		}
		if field == nil {
			return nil, false
		}
		names, message = append(names, string(field.Name())), field.Message()
	}
	return names, true
}

// rejectIgnored rejects a query or a body in calls that take none, and a path or query that is not UTF-8. grpc-gateway
// ignores such a query or body, so it would ignore a filter or an etag in it.
func rejectIgnored(mux func() *runtime.ServeMux) runtime.Middleware {
	queryless := pathsWithoutQuery()
	return func(next runtime.HandlerFunc) runtime.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
			pattern, _ := runtime.HTTPPattern(r.Context())
			isIgnored := r.URL.RawQuery != "" && queryless[r.Method+" "+pattern.String()]
			if isIgnored || hasIgnoredBody(r) || !isText(r.URL) {
				_, marshaler := runtime.MarshalerForRequest(mux(), r)
				writeError(r.Context(), mux(), marshaler, w, r, errUnknownParameter)
				return
			}
			next(w, r, params)
		}
	}
}

// hasIgnoredBody returns whether a call has a body although no call of its method takes one.
func hasIgnoredBody(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodDelete {
		return false
	}
	count, _ := io.ReadFull(r.Body, make([]byte, 1))
	return count > 0
}

// isText returns whether the path and the query are UTF-8, as every text of a gRPC message must be.
func isText(address *url.URL) bool {
	query, _ := url.QueryUnescape(address.RawQuery)
	return utf8.ValidString(address.Path) && utf8.ValidString(query)
}

// pathsWithoutQuery returns the methods and paths of the calls whose fields are all in the path or in the body.
func pathsWithoutQuery() map[string]bool {
	found := map[string]bool{}
	protoregistry.GlobalFiles.RangeFilesByPackage("caseload.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				rule, _ := proto.GetExtension(methods.Get(j).Options(), annotations.E_Http).(*annotations.HttpRule)
				verb, path := verbAndPath(rule)
				inPath := strings.Count(path, "{")
				if rule.GetBody() == "*" || inPath == methods.Get(j).Input().Fields().Len() {
					found[verb+" "+strings.ReplaceAll(path, "}", "=*}")] = true
				}
			}
		}
		return true
	})
	return found
}

func verbAndPath(rule *annotations.HttpRule) (string, string) {
	switch pattern := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return http.MethodGet, pattern.Get
	case *annotations.HttpRule_Post:
		return http.MethodPost, pattern.Post
	case *annotations.HttpRule_Patch:
		return http.MethodPatch, pattern.Patch
	case *annotations.HttpRule_Delete:
		return http.MethodDelete, pattern.Delete
	}
	return "", ""
}
