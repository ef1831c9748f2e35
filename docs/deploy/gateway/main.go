// The gateway translates HTTP and JSON calls into gRPC calls to Caseload. The google.api.http options of the contract define
// the HTTP calls. The gateway has no key and stores no data. Each caller sends its own key, and the gateway forwards it.
// docs/http.md says how to build and run it.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"caseload-gateway/caseload/v1"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/encoding/protojson"
)

const (
	callTimeout       = 10 * time.Second
	stopTimeout       = 15 * time.Second
	largestBodyBytes  = 4 << 20 // the server accepts 1 MiB of protobuf, and the same message as JSON is longer
	largestReplyBytes = 16 << 20
)

//go:embed service_config.json
var serviceConfig string

var (
	listen           = flag.String("listen", "127.0.0.1:8080", "address to serve HTTP on")
	backend          = flag.String("backend", "dns:///127.0.0.1:50051", "gRPC target of the Caseload servers")
	backendCA        = flag.String("backend-ca", "", "PEM file of the CA certificate of the servers; empty: the CA certificates of the system")
	backendPlaintext = flag.Bool("backend-plaintext", false, "call the servers without TLS")
	tlsCert          = flag.String("tls-cert", "", "PEM file of the certificate of this gateway; empty: plain HTTP, on loopback only")
	tlsKey           = flag.String("tls-key", "", "PEM file of the private key of the certificate")
	allowInsecure    = flag.Bool("allow-insecure", false, "allow plain text beyond loopback")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx); err != nil {
		log.Fatalf("caseload-gateway: %v", err)
	}
}

// serve answers calls until the context ends, and then waits for the open calls.
func serve(ctx context.Context) error {
	if err := checkPlaintext(); err != nil {
		return err
	}
	conn, err := connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	handler, err := newHandler(conn)
	if err != nil {
		return err
	}
	return serveHTTP(ctx, handler)
}

// checkPlaintext returns an error if keys and personal data would be sent in plain text beyond loopback.
func checkPlaintext() error {
	switch {
	case *allowInsecure:
		return nil
	case *tlsCert == "" && !isLoopback(*listen):
		return errors.New("-listen beyond loopback needs -tls-cert and -tls-key, or -allow-insecure")
	case *backendPlaintext && !isLoopback((*backend)[strings.LastIndex(*backend, "/")+1:]):
		return errors.New("-backend-plaintext beyond loopback needs -allow-insecure")
	}
	return nil
}

func isLoopback(address string) bool {
	host, _, _ := net.SplitHostPort(address)
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

func connect() (*grpc.ClientConn, error) {
	transport, err := backendCredentials()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(*backend,
		grpc.WithTransportCredentials(transport),
		grpc.WithUnaryInterceptor(limitTime),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 150 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestReplyBytes)))
}

// limitTime sets the longest deadline of a call. The header Grpc-Timeout of a caller can only make it shorter.
func limitTime(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return invoke(ctx, method, request, reply, conn, options...)
}

func backendCredentials() (credentials.TransportCredentials, error) {
	if *backendPlaintext {
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if *backendCA != "" {
		authority, err := os.ReadFile(*backendCA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(authority) {
			return nil, fmt.Errorf("-backend-ca %s has no certificate", *backendCA)
		}
	}
	return credentials.NewTLS(config), nil
}

// newHandler serves the HTTP calls of the contract, and GET /healthz, which calls the health service of the servers.
func newHandler(conn *grpc.ClientConn) (http.Handler, error) {
	json := strictBody{&runtime.JSONPb{MarshalOptions: protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}}}
	var mux *runtime.ServeMux
	mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, json),
		runtime.WithIncomingHeaderMatcher(metadataOf),
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithErrorHandler(writeError),
		runtime.WithRoutingErrorHandler(writeRoutingError),
		runtime.SetQueryParameterParser(strictQuery{}),
		runtime.WithUnescapingMode(runtime.UnescapingModeAllExceptSlash),
		runtime.WithMiddlewares(rejectIgnored(func() *runtime.ServeMux { return mux })),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithHealthzEndpoint(grpc_health_v1.NewHealthClient(conn)),
	)
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		caseloadv1.RegisterTherapistServiceHandler,
		caseloadv1.RegisterPatientServiceHandler,
		caseloadv1.RegisterAssignmentServiceHandler,
		caseloadv1.RegisterChangeServiceHandler,
	} {
		if err := register(context.Background(), mux, conn); err != nil {
			return nil, err
		}
	}
	return http.MaxBytesHandler(noStore(keepEscapes(keepMalformed(mux))), largestBodyBytes), nil
}

// keepMalformed makes the server reject a malformed end user. grpc-gateway drops a header that is not ASCII, so the server
// would record the change without its end user.
func keepMalformed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		users := r.Header["Caseload-On-Behalf-Of"]
		for index, user := range users {
			if strings.ContainsFunc(user, func(char rune) bool { return char < ' ' || char > '~' }) {
				users[index] = "?"
			}
		}
		next.ServeHTTP(w, r)
	})
}

// keepEscapes makes grpc-gateway split the path before it decodes it. Otherwise an encoded slash or colon in an id could select
// another call.
func keepEscapes(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.RawPath = r.URL.EscapedPath()
		next.ServeHTTP(w, r)
	})
}

// noStore keeps answers, which contain personal data, out of caches (RFC 9111, section 5.2.2.5).
func noStore(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// metadataOf returns the metadata key for a header, and whether to forward it. grpc-gateway always forwards Authorization.
func metadataOf(header string) (string, bool) {
	switch name := strings.ToLower(header); name {
	case "caseload-on-behalf-of", "traceparent", "tracestate":
		return name, true
	}
	return "", false
}

func serveHTTP(ctx context.Context, handler http.Handler) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      2 * time.Minute, // a caller that does not read its answer must not keep it in memory
		IdleTimeout:       2 * time.Minute,
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Printf("caseload-gateway: serving on %s\n", listener.Addr())
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		late, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		stopped <- server.Shutdown(late)
	}()
	if *tlsCert == "" {
		err = server.Serve(listener)
	} else {
		err = server.ServeTLS(listener, *tlsCert, *tlsKey)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
