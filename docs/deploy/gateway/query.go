package main

import (
	"net/http"
	"net/url"
	"strings"

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
		path := strings.Split(name, ".")
		if filter.HasCommonPrefix(path) || !hasField(request.ProtoReflect().Descriptor(), path) {
			return errUnknownParameter
		}
	}
	return strict.DefaultQueryParser.Parse(request, values, filter)
}

func hasField(message protoreflect.MessageDescriptor, path []string) bool {
	if message == nil {
		return false
	}
	field := message.Fields().ByName(protoreflect.Name(path[0]))
	if field == nil {
		field = message.Fields().ByJSONName(path[0])
	}
	return field != nil && (len(path) == 1 || hasField(field.Message(), path[1:]))
}

// refuseQuery rejects a query in calls that take none. grpc-gateway ignores such a query, so it would ignore a filter in it.
func refuseQuery(mux func() *runtime.ServeMux) runtime.Middleware {
	queryless := pathsWithoutQuery()
	return func(next runtime.HandlerFunc) runtime.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
			pattern, _ := runtime.HTTPPattern(r.Context())
			if r.URL.RawQuery != "" && queryless[r.Method+" "+pattern.String()] {
				_, marshaler := runtime.MarshalerForRequest(mux(), r)
				writeError(r.Context(), mux(), marshaler, w, r, errUnknownParameter)
				return
			}
			next(w, r, params)
		}
	}
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
