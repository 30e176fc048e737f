// Calls a gateway with both of the JDK's HTTP clients, and prints a line for each kind of call that went as it should:
//
//     java JdkClient.java http://127.0.0.1:8000/v1 KEY
//
// HttpClient asks for HTTP/2 with its first call of a connection (`Upgrade: h2c`), which the gateway doesn't speak: the
// call has to be answered in HTTP/1.1 all the same.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;
import java.util.stream.Stream;

public class JdkClient {
    static final Duration TIMEOUT = Duration.ofSeconds(60);
    static final String CHAT = "{\"model\": \"m\", \"messages\": [{\"role\": \"user\", \"content\": \"%s\"}], \"stream\": %s}";
    static final String RESPONSE = "{\"model\": \"m\", \"input\": \"%s\", \"stream\": %s}";

    final String base;
    final String key;
    final HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_2).connectTimeout(TIMEOUT).build();

    JdkClient(String base, String key) {
        this.base = base;
        this.key = key;
    }

    public static void main(String[] arguments) throws Exception {
        JdkClient jdk = new JdkClient(arguments[0], arguments[1]);
        jdk.callOverAndOver();
        jdk.callAtOnce();
        jdk.stream();
        jdk.expectContinue();
        jdk.getAndDelete();
        jdk.beRefused();
        jdk.callByUrlConnection();
        jdk.streamByUrlConnection();
        jdk.beRefusedByUrlConnection();
    }

    void callOverAndOver() throws Exception {
        for (int number = 0; number < 100; number++) {
            HttpResponse<String> answer = client.send(toRequest("/chat/completions", CHAT, "call " + number, false), BodyHandlers.ofString());
            check(answer.statusCode() == 200 && answer.body().contains("call " + number), answer.body());
            check(answer.version() == HttpClient.Version.HTTP_1_1, "HTTP/2?");
        }
        System.out.println("100 calls one after another");
    }

    void callAtOnce() throws Exception {
        List<CompletableFuture<HttpResponse<String>>> answers = new ArrayList<>();
        for (int number = 0; number < 100; number++) {
            answers.add(client.sendAsync(toRequest("/responses", RESPONSE, "at once " + number, false), BodyHandlers.ofString()));
        }
        for (int number = 0; number < 100; number++) {
            HttpResponse<String> answer = answers.get(number).get();
            check(answer.statusCode() == 200 && answer.body().contains("at once " + number), answer.body());
        }
        System.out.println("100 calls at once");
    }

    void stream() throws Exception {
        for (String path : List.of("/chat/completions", "/responses")) {
            String form = path.equals("/responses") ? RESPONSE : CHAT;
            HttpResponse<Stream<String>> answer = client.send(toRequest(path, form, "in a stream", true), BodyHandlers.ofLines());
            String last = path.equals("/responses") ? "response.completed" : "[DONE]";
            String all = answer.body().collect(Collectors.joining("\n"));
            check(answer.statusCode() == 200 && all.contains(last), all);
        }
        System.out.println("streams of both APIs");
    }

    void expectContinue() throws Exception {
        for (int number = 0; number < 3; number++) {
            HttpRequest request = HttpRequest.newBuilder(toRequest("/chat/completions", CHAT, "x".repeat(200_000), false), (name, value) -> true)
                .expectContinue(true).build();
            HttpResponse<String> answer = client.send(request, BodyHandlers.ofString());
            check(answer.statusCode() == 200, answer.body());
        }
        System.out.println("calls that expect 100-continue");
    }

    void getAndDelete() throws Exception {
        HttpResponse<String> made = client.send(toRequest("/responses", RESPONSE, "kept", false), BodyHandlers.ofString());
        String id = made.body().replaceAll("(?s).*?\"id\": ?\"(resp_[^\"]*)\".*", "$1");
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(base + "/responses/" + id)).timeout(TIMEOUT).header("Authorization", "Bearer " + key);
        HttpResponse<String> found = client.send(request.GET().build(), BodyHandlers.ofString());
        check(found.statusCode() == 200 && found.body().contains(id), found.body());
        HttpResponse<String> gone = client.send(request.DELETE().build(), BodyHandlers.ofString());
        check(gone.statusCode() == 200, gone.body());
        HttpResponse<String> models = client.send(request.uri(URI.create(base + "/models")).GET().build(), BodyHandlers.ofString());
        check(models.statusCode() == 200, models.body());
        System.out.println("a stored response and the models");
    }

    void beRefused() throws Exception {
        JdkClient other = new JdkClient(base, "wrong");
        for (int size : new int[] {10, 4_000_000}) {
            HttpResponse<String> answer = other.client.send(other.toRequest("/responses", RESPONSE, "x".repeat(size), false), BodyHandlers.ofString());
            check(answer.statusCode() == 401 && answer.body().contains("invalid_api_key"), answer.body());
        }
        System.out.println("a wrong key, with a small body and a large one");
    }

    void callByUrlConnection() throws Exception {
        for (int number = 0; number < 100; number++) {
            HttpURLConnection connection = open("/responses", String.format(RESPONSE, "url " + number, false), key, 0);
            check(connection.getResponseCode() == 200, "status " + connection.getResponseCode());
            check(readAll(connection).contains("url " + number), "answer");
        }
        System.out.println("100 calls by HttpURLConnection");
    }

    void streamByUrlConnection() throws Exception {
        HttpURLConnection connection = open("/chat/completions", String.format(CHAT, "x".repeat(100_000), true), key, 4096);
        check(readAll(connection).contains("[DONE]"), "the stream's end");
        System.out.println("a stream by HttpURLConnection, its request in chunks");
    }

    void beRefusedByUrlConnection() throws Exception {
        for (int chunk : new int[] {0, 4096}) {
            HttpURLConnection connection = open("/responses", String.format(RESPONSE, "x".repeat(4_000_000), false), "wrong", chunk);
            check(connection.getResponseCode() == 401, "status " + connection.getResponseCode());
        }
        System.out.println("a wrong key with a large body by HttpURLConnection");
    }

    HttpRequest toRequest(String path, String form, String text, boolean stream) {
        return HttpRequest.newBuilder(URI.create(base + path))
            .timeout(TIMEOUT)
            .header("Authorization", "Bearer " + key)
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(String.format(form, text, stream)))
            .build();
    }

    HttpURLConnection open(String path, String body, String bearer, int chunk) throws Exception {
        HttpURLConnection connection = (HttpURLConnection) new URL(base + path).openConnection();
        connection.setRequestMethod("POST");
        connection.setDoOutput(true);
        connection.setReadTimeout(60_000);
        connection.setRequestProperty("Authorization", "Bearer " + bearer);
        connection.setRequestProperty("Content-Type", "application/json");
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        if (chunk > 0) {
            connection.setChunkedStreamingMode(chunk);
        }
        try (OutputStream out = connection.getOutputStream()) {
            out.write(bytes);
        }
        return connection;
    }

    static String readAll(HttpURLConnection connection) throws Exception {
        try (BufferedReader reader = new BufferedReader(new InputStreamReader(connection.getInputStream(), StandardCharsets.UTF_8))) {
            return reader.lines().collect(Collectors.joining("\n"));
        }
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new IllegalStateException(what.substring(0, Math.min(what.length(), 500)));
        }
    }
}
