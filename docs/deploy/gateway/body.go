package main

import (
	"io"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errMoreThanOneValue = status.Error(codes.InvalidArgument, "more than one value")

// strictBody rejects a body with text after its JSON value. grpc-gateway ignores that text.
type strictBody struct{ *runtime.JSONPb }

func (strict strictBody) NewDecoder(body io.Reader) runtime.Decoder {
	decoder := strict.JSONPb.NewDecoder(body).(runtime.DecoderWrapper)
	return runtime.DecoderFunc(func(request any) error {
		if err := decoder.Decode(request); err != nil {
			return err
		}
		if _, err := decoder.Token(); err != io.EOF {
			return errMoreThanOneValue
		}
		return nil
	})
}
