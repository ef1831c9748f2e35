// Calls until standard input ends, one call after the other, and prints how many failed. It uses connect.go of the page.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"example.org/rota/caseload/v1"

	"github.com/google/uuid"
)

func main() {
	conn, err := connect("dns:///caseload.example.org:50051", "ca.pem", os.Getenv("CASELOAD_KEY"))
	if err != nil {
		panic(err)
	}
	therapists := caseloadv1.NewTherapistServiceClient(conn)
	ended := make(chan bool)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	calls, failed := 0, 0
	fmt.Println("starting")
	if err := create(therapists); err != nil {
		failed++
		fmt.Fprintln(os.Stderr, err)
	}
	for {
		select {
		case <-ended:
			fmt.Printf("%d of %d failed\n", failed, calls)
			return
		default:
		}
		calls++
		if err := once(therapists); err != nil {
			failed++
			fmt.Fprintln(os.Stderr, err)
		}
		if calls%20 == 0 {
			fmt.Println("calling")
		}
	}
}

func once(therapists caseloadv1.TherapistServiceClient) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := therapists.ListTherapists(ctx, &caseloadv1.ListTherapistsRequest{}); err != nil {
		return err
	}
	_, err := therapists.DeleteTherapist(ctx, &caseloadv1.DeleteTherapistRequest{
		TherapistId: "nobody", AllowMissing: true, RequestId: uuid.NewString()})
	return err
}

// create is not retried, so only waiting lets it succeed before the server starts.
func create(therapists caseloadv1.TherapistServiceClient) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	_, err := therapists.CreateTherapist(ctx, &caseloadv1.CreateTherapistRequest{
		Therapist: &caseloadv1.Therapist{DisplayName: "Ada Roe"}, RequestId: uuid.NewString()})
	return err
}
