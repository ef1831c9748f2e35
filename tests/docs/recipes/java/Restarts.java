package org.example.rota;

import caseload.v1.CreateTherapistRequest;
import caseload.v1.DeleteTherapistRequest;
import caseload.v1.ListTherapistsRequest;
import caseload.v1.Therapist;
import caseload.v1.TherapistServiceGrpc;
import io.grpc.StatusRuntimeException;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

/** Calls until standard input ends, one call after the other, and prints how many failed. It uses Caseload.java of the page. */
public final class Restarts {
  private static volatile boolean ended;

  public static void main(String[] arguments) throws Exception {
    var channel = Caseload.connect("dns:///caseload.example.org:50051", "ca.pem", System.getenv("CASELOAD_KEY"));
    var therapists = TherapistServiceGrpc.newBlockingStub(channel);
    var waiting = new Thread(Restarts::awaitEnd);
    waiting.start();
    System.out.println("starting");
    int failed = failures(() -> create(therapists));
    int calls = 0;
    while (!ended) {
      calls++;
      failed += failures(() -> once(therapists));
      if (calls % 20 == 0) {
        System.out.println("calling");
      }
    }
    System.out.println(failed + " of " + calls + " failed");
    channel.shutdownNow();
  }

  private static int failures(Runnable calling) {
    try {
      calling.run();
      return 0;
    } catch (StatusRuntimeException error) {
      System.err.println(error);
      return 1;
    }
  }

  /** A create is not retried, so only waiting lets it succeed before the server starts. */
  private static void create(TherapistServiceGrpc.TherapistServiceBlockingStub therapists) {
    var request = CreateTherapistRequest.newBuilder().setTherapist(Therapist.newBuilder().setDisplayName("Ada Roe"));
    request.setRequestId(UUID.randomUUID().toString());
    therapists.withDeadlineAfter(60, TimeUnit.SECONDS).createTherapist(request.build());
  }

  private static void once(TherapistServiceGrpc.TherapistServiceBlockingStub therapists) {
    therapists.withDeadlineAfter(10, TimeUnit.SECONDS).listTherapists(ListTherapistsRequest.getDefaultInstance());
    var request = DeleteTherapistRequest.newBuilder().setTherapistId("nobody").setAllowMissing(true);
    request.setRequestId(UUID.randomUUID().toString());
    therapists.withDeadlineAfter(10, TimeUnit.SECONDS).deleteTherapist(request.build());
  }

  private static void awaitEnd() {
    try {
      System.in.transferTo(java.io.OutputStream.nullOutputStream());
    } catch (java.io.IOException error) {
      System.err.println(error);
    }
    ended = true;
  }
}
